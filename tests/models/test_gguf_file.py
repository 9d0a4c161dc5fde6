"""GGUF files in: every quantisation against the gguf package, llama.cpp's row order, rope, and what is refused."""

import numpy as np
import pytest
import sources
from compare import assert_close
from gguf.quants import dequantize

from lm2.models.checkpoints.convert import convert
from lm2.models.checkpoints.gguf_file import open_gguf
from lm2.models.checkpoints.gguf_rope import recover
from lm2.models.checkpoints.source import whole
from lm2.models.config import RopeConfig
from lm2.models.errors import ConvertError
from lm2.models.layout import open_folder

IDS = np.arange(40).reshape(2, 20) % 96
DTYPES = {"F32": "F32", "F16": "F16", "BF16": "BF16"}


@pytest.fixture(scope="module")
def model():
    return sources.llama(seed=3)


def expected(stored, name, heads, head_dim):
    """Dequantised by the gguf package, rows brought back one by one."""
    w = dequantize(*stored[name])
    if not heads:
        return w
    out = np.empty_like(w)
    for j in range(len(w)):
        h, at = divmod(j, head_dim)
        p, r = divmod(at, head_dim // 2)
        out[j] = w[h * head_dim + 2 * r + p]
    return out


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_every_type_is_bit_equal_to_gguf(tmp_path, model, kind):
    stored = sources.write_gguf(tmp_path / "m.gguf", model, kind)
    summary = convert(tmp_path / "m.gguf", tmp_path / "dst")
    got, codes = sources.read_folder(tmp_path / "dst")
    for name in stored:
        heads = 4 if ".q_proj" in name else 2 if ".k_proj" in name else 0
        assert np.array_equal(got[name], expected(stored, name, heads, 16)), name
        assert codes[name] == ("F32" if "norm" in name else DTYPES.get(kind, "F32")), name
    assert summary["dtype"] == {"F16": "float16", "BF16": "bfloat16"}.get(kind, "float32")
    assert not summary["tokenizer"]


@pytest.mark.parametrize("tied", [True, False])
def test_float_file_computes_what_the_original_did(tmp_path, tied):
    model = sources.llama(tied=tied, seed=8, head_dim=32, heads=2, kv=1)
    sources.write_gguf(tmp_path / "m.gguf", model)
    convert(tmp_path / "m.gguf", tmp_path / "dst")
    config = open_folder(tmp_path / "dst").config
    assert config.tie_word_embeddings == tied and config.rms_norm_eps == 1e-5 and config.rope.theta == 500.0
    assert_close("logits", sources.backbone_logits(tmp_path / "dst", IDS), sources.logits(model, IDS), 0.0)


def test_without_undoing_the_row_order_the_logits_differ(tmp_path, model, monkeypatch):
    sources.write_gguf(tmp_path / "m.gguf", model)
    monkeypatch.setattr("lm2.models.checkpoints.gguf_file.unpermute", lambda block, heads: block)
    convert(tmp_path / "m.gguf", tmp_path / "dst")
    assert np.abs(sources.backbone_logits(tmp_path / "dst", IDS) - sources.logits(model, IDS)).max() > 1e-2


@pytest.mark.parametrize("block_bytes", [1, 4096, 1 << 20])
def test_row_blocks_do_not_change_a_value(tmp_path, model, monkeypatch, block_bytes):
    stored = sources.write_gguf(tmp_path / "m.gguf", model, "Q4_1")
    monkeypatch.setattr("lm2.models.checkpoints.source.BLOCK_BYTES", block_bytes)
    tensors = open_gguf(tmp_path / "m.gguf").tensors
    for name in (
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.1.self_attn.k_proj.weight",
        "model.embed_tokens.weight",
        "model.norm.weight",
    ):
        heads = 4 if ".q_proj" in name else 2 if ".k_proj" in name else 0
        assert np.array_equal(whole(tensors[name]), expected(stored, name, heads, 16))
        assert (len(list(tensors[name].blocks())) > 1) == (block_bytes < 1 << 20 and len(tensors[name].shape) > 1)


def test_biases_follow_their_rows(tmp_path):
    model = sources.llama(attention_bias=True, mlp_bias=True, seed=6)
    sources.write_gguf(tmp_path / "m.gguf", model)
    convert(tmp_path / "m.gguf", tmp_path / "dst")
    assert_close("logits", sources.backbone_logits(tmp_path / "dst", IDS), sources.logits(model, IDS), 0.0)


LLAMA31 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def factors(rope, head_dim):
    plain, scaled = (np.array(r.inverse_frequencies(head_dim)) for r in (RopeConfig(rope.theta), rope))
    return (plain / scaled).astype(np.float32)


def test_llama31_scaling_through_a_file(tmp_path):
    model = sources.llama(rope_parameters=LLAMA31, hidden=128, heads=2, kv=1)  # head_dim 64: several blended pairs
    rope = RopeConfig(10000.0, "llama3", 8.0, 1.0, 4.0, 64)
    sources.write_gguf(tmp_path / "m.gguf", model, extra={"rope_freqs.weight": factors(rope, 64)})
    convert(tmp_path / "m.gguf", tmp_path / "dst")
    assert open_folder(tmp_path / "dst").config.rope == rope
    assert_close("logits", sources.backbone_logits(tmp_path / "dst", IDS), sources.logits(model, IDS), 0.0)


@pytest.mark.parametrize(
    "rope",
    [
        RopeConfig(500000.0, "llama3", 8.0, 1.0, 4.0, 8192),
        RopeConfig(500000.0, "llama3", 32.0, 1.0, 4.0, 8192),
        RopeConfig(500000.0, "llama3", 4.0, 1.0, 2.0, 2048),
        RopeConfig(10000.0, "linear", 3.0),
        RopeConfig(10000.0),
    ],
)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_scaling_is_recovered_from_its_factors(rope, head_dim):
    assert recover(factors(rope, head_dim), rope.theta) == rope


def test_scaling_with_another_low_factor_gives_the_same_frequencies():
    rope = RopeConfig(500000.0, "llama3", 8.0, 2.0, 6.0, 16384)
    found = recover(factors(rope, 128), rope.theta)
    assert found is not None and np.allclose(found.inverse_frequencies(128), rope.inverse_frequencies(128), rtol=1e-4, atol=0)


def test_unknown_scaling_is_refused(tmp_path, model):
    strange = np.linspace(1, 5, 8).astype(np.float32)
    assert recover(strange, 500.0) is None
    sources.write_gguf(tmp_path / "m.gguf", model, extra={"rope_freqs.weight": strange})
    with pytest.raises(ConvertError, match=r"rope_freqs\.weight is no Llama 3\.1 scaling"):
        convert(tmp_path / "m.gguf", tmp_path / "dst")


def test_linear_scaling(tmp_path, model):
    def keys(w):
        w.add_string("llama.rope.scaling.type", "linear")
        w.add_float32("llama.rope.scaling.factor", 2.5)

    sources.write_gguf(tmp_path / "m.gguf", model, keys=keys)
    convert(tmp_path / "m.gguf", tmp_path / "dst")
    assert open_folder(tmp_path / "dst").config.rope == RopeConfig(500.0, "linear", 2.5)


@pytest.mark.parametrize(
    ("keys", "rope"),
    [
        ({"llama.rope.scaling.factor": 2.5}, RopeConfig(500.0, "linear", 2.5)),
        ({"llama.rope.scale_linear": 2.5}, RopeConfig(500.0, "linear", 2.5)),
        ({"llama.rope.scaling.factor": 2.5, "llama.rope.scaling.type": "none"}, RopeConfig(500.0)),
        ({"llama.rope.scale_linear": 2.5, "llama.rope.scaling.type": "none"}, RopeConfig(500.0)),
        ({"llama.rope.scaling.factor": 0.0, "llama.rope.scaling.type": "linear"}, RopeConfig(500.0)),
    ],
)
def test_a_scaling_factor_counts_as_llama_cpp_counts_it(tmp_path, model, keys, rope):
    def write(w):
        for key, value in keys.items():
            w.add_string(key, value) if isinstance(value, str) else w.add_float32(key, value)

    sources.write_gguf(tmp_path / "m.gguf", model, keys=write)
    convert(tmp_path / "m.gguf", tmp_path / "dst")
    assert open_folder(tmp_path / "dst").config.rope == rope


STRANGE = {
    "llama.rope.scaling.attn_factor": 1.5,
    "llama.rope.scaling.yarn_ext_factor": 1.0,
    "llama.rope.scaling.yarn_log_multiplier": 0.1,
    "llama.rope.dimension_sections": [4, 4, 4, 4],
    "llama.attention.clamp_kqv": 8.0,
    "llama.attention.max_alibi_bias": 8.0,
    "llama.attention.causal": False,
    "llama.attention.scale": 0.5,
    "llama.attention.temperature_scale": 0.1,
    "llama.attention.sliding_window_pattern": [True, False, True],
    "llama.attn_logit_softcapping": 50.0,
    "llama.final_logit_softcapping": 30.0,
    "llama.logit_scale": 0.25,
    "llama.expert_used_count": 2,
    "llama.use_parallel_residual": True,
    "llama.of_tomorrow": "yes",
}
ORDINARY = {
    "llama.expert_count": 0, "llama.expert_used_count": 0, "llama.logit_scale": 1.0, "llama.attention.causal": True, "llama.attention.sliding_window": 0,
    "llama.rope.scaling.finetuned": True, "llama.rope.scaling.original_context_length": 64, "llama.vocab_size": 96, "llama.rope.dimension_count": 16,
    "general.file_type": 1, "general.quantization_version": 2, "quantize.imatrix.file": "i.dat", "mine.note": 7, "tokenizer.ggml.padding_token_id": 3,
}  # fmt: skip


def put(keys):
    def write(w):
        for key, value in keys.items():
            add = {bool: w.add_bool, int: w.add_uint32, float: w.add_float32, str: w.add_string, list: w.add_array}[type(value)]
            add(key, value)

    return write


@pytest.mark.parametrize("key", STRANGE)
def test_a_key_that_is_not_understood_is_refused_by_name(tmp_path, model, key):
    sources.write_gguf(tmp_path / "m.gguf", model, keys=put({key: STRANGE[key]}))
    with pytest.raises(ConvertError, match=rf"{key} is .*only plain Llama decoders"):
        convert(tmp_path / "m.gguf", tmp_path / "dst")
    assert not (tmp_path / "dst").exists()


def test_keys_that_say_no_are_taken(tmp_path, model):
    sources.write_gguf(tmp_path / "m.gguf", model, keys=put(ORDINARY))
    convert(tmp_path / "m.gguf", tmp_path / "dst")
    assert_close("logits", sources.backbone_logits(tmp_path / "dst", IDS), sources.logits(model, IDS), 0.0)


def with_key(add, key, value):
    return lambda w: getattr(w, add)(key, value)


REFUSED = {
    "architecture": ({"architecture": "gemma2"}, "architecture 'gemma2' is not supported: lm2 converts GGUF files of architecture chatglm, ernie4_5, exaone4, gemma, gemma3,"),
    "experts": ({"keys": with_key("add_uint32", "llama.expert_count", 8)}, "llama.expert_count is 8"),
    "window": ({"keys": with_key("add_uint32", "llama.attention.sliding_window", 4096)}, "sliding_window is 4096"),
    "split": ({"keys": with_key("add_uint16", "split.count", 3)}, "is one of 3 parts: merge"),
    "longrope": ({"keys": with_key("add_string", "llama.rope.scaling.type", "longrope")}, "scaling.type 'longrope'"),
    "partial rotary": ({"keys": with_key("add_uint32", "llama.rope.dimension_count", 8)}, "dimension_count 8 must equal the head size 16"),
    "vocabulary": ({"keys": with_key("add_uint32", "llama.vocab_size", 97)}, "llama.vocab_size 97 contradicts token_embd.weight with 96"),
    "no embedding": ({"drop": ("model.embed_tokens.weight",)}, "has no tensor token_embd.weight"),
    "missing": ({"drop": ("model.layers.1.mlp.up_proj.weight",)}, r"no tensor model\.layers\.1\.mlp\.up_proj\.weight"),
    "unknown": ({"extra": {"blk.0.attn_q_norm.weight": np.ones(16, np.float32)}}, "attn_q_norm.weight is not part of a plain Llama"),
    "heads": ({"keys": with_key("add_uint32", "llama.attention.key_length", 24)}, "key_length|head size|rows"),
    "nan": (
        {"extra": {"model.norm.weight": np.full(64, np.nan, np.float32)}, "rename": {"model.norm.weight": "output_norm.weight"}},
        "holds NaN",
    ),
    "eos": ({"keys": with_key("add_uint32", "tokenizer.ggml.eos_token_id", 96)}, "eos_token_id 96 must be a token id below 96"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_files_that_are_refused(tmp_path, model, case):
    options, message = REFUSED[case]
    sources.write_gguf(tmp_path / "m.gguf", model, **options)
    with pytest.raises(ConvertError, match=message):
        convert(tmp_path / "m.gguf", tmp_path / "dst")
    assert not (tmp_path / "dst").exists()


def test_a_type_gguf_cannot_dequantise_is_named(tmp_path, model):
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    sources.write_gguf(tmp_path / "m.gguf", model, "Q8_0")
    data = (tmp_path / "m.gguf").read_bytes()
    label = b"blk.0.ffn_up.weight"
    at = data.index(label) + len(label) + 4 + 16
    assert int.from_bytes(data[at : at + 4], "little") == GGMLQuantizationType.Q8_0
    assert GGML_QUANT_SIZES[GGMLQuantizationType.Q8_1][0] == 32
    (tmp_path / "m.gguf").write_bytes(data[:at] + int(GGMLQuantizationType.I8).to_bytes(4, "little") + data[at + 4 :])
    with pytest.raises(ConvertError, match=r"ffn_up\.weight"):
        convert(tmp_path / "m.gguf", tmp_path / "dst")
