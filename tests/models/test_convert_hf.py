"""Hugging Face folders in: what comes out, and every way a folder can be wrong."""

import itertools
import json
import struct

import numpy as np
import pytest
import sources
import torch
from compare import assert_close
from safetensors.torch import load_file, save_file

from lm2.models.checkpoints.convert import convert
from lm2.models.checkpoints.source import sha256
from lm2.models.checkpoints.warmstart import MemoryRequest
from lm2.models.errors import ConfigError, ConvertError, TensorFileError, WriteError
from lm2.models.layout import FILE_BYTES_MAX, FINGERPRINT, open_folder, stays_float32
from lm2.models.rope import read_rope
from lm2.models.tensorfile import parse_header
from lm2.runtime.loading import read_generation
from lm2.runtime.template import TEMPLATE_BYTES_MAX
from lm2.runtime.tokenizer import TOKENIZER_BYTES_MAX

IDS = np.arange(40).reshape(2, 20) % 96


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A tied float32 Llama and its folder."""
    model = sources.llama()
    return model, sources.save_hf(model, tmp_path_factory.mktemp("hf") / "tiny")


@pytest.fixture
def copy(plain, tmp_path):
    """A copy of that folder to spoil."""
    folder = tmp_path / "src"
    folder.mkdir()
    for file in plain[1].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def edit(file, **fields):
    d = json.loads(file.read_text())
    file.write_text(json.dumps(d | fields))


def drawn(name):
    """A matrix that conversion makes itself: float16 numbers, kept in float16."""
    return ".memory." in name and name.endswith(("_gate.weight", "content.weight"))


def respoil(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("shard", ["5GB", "60KB"])
@pytest.mark.parametrize("tied", [True, False])
def test_backbone_is_unchanged(tmp_path, shard, tied):
    model = sources.llama(tied=tied, seed=4)
    src = sources.save_hf(model, tmp_path / "src", shard)
    assert (src / "model.safetensors.index.json").is_file() == (shard == "60KB")
    summary = convert(src, tmp_path / "dst")
    got, codes = sources.read_folder(tmp_path / "dst")
    for name, w in sources.weights(model).items():
        assert np.array_equal(got[name], w), name
    assert all(code == ("F16" if drawn(name) else "F32") for name, code in codes.items())
    assert (got["model.layers.1.memory.content.weight"] == 0.5 * np.eye(64)).all()
    assert_close("logits", sources.backbone_logits(tmp_path / "dst", IDS), sources.logits(model, IDS), 0.0)
    folder = open_folder(tmp_path / "dst")
    assert folder.fingerprint == summary["fingerprint"] and folder.config.memory.layers == (1, 2)
    assert summary["parameters"] == sum(a.size for a in got.values())


def test_wrong_rows_would_be_noticed(tmp_path, plain):
    convert(plain[1], tmp_path / "dst")
    name = "model.layers.0.self_attn.q_proj.weight"
    spoiled = load_file(tmp_path / "dst" / "model.safetensors")
    spoiled[name] = torch.roll(spoiled[name], 1, 0)
    save_file(spoiled, tmp_path / "dst" / "model.safetensors")
    assert np.abs(sources.backbone_logits(tmp_path / "dst", IDS) - sources.logits(plain[0], IDS)).max() > 1e-2


@pytest.mark.parametrize("cell", ["gated", "released"])
def test_unwritten_memory_leaves_the_logits_alone(tmp_path, plain, cell):
    from lm2.runtime.backend import BackendOptions, open_backend

    convert(plain[1], tmp_path / "dst", MemoryRequest(cell=cell))
    backend = open_backend("torch", tmp_path / "dst", BackendOptions(device="cpu", dtype="float32", threads=2))
    got, chunk = backend.extend(IDS, backend.start(2), all_logits=True)
    assert_close(f"{cell} logits", got, sources.logits(plain[0], IDS), 1e-4, 1e-4)
    if cell == "gated":
        after, _ = backend.extend(IDS, backend.start(2, backend.commit(chunk)), all_logits=True)
        assert np.abs(after - got).max() > 1e-3, "a written memory must change the logits"


def test_half_precision_keeps_bits_and_float32_parts(tmp_path):
    model = sources.llama(seed=2).to(torch.bfloat16)
    src = sources.save_hf(model, tmp_path / "src")
    summary = convert(src, tmp_path / "dst")
    got, codes = sources.read_folder(tmp_path / "dst")
    assert summary["dtype"] == "bfloat16"
    for name, w in sources.weights(model).items():
        assert np.array_equal(got[name], w), name
    for name, code in codes.items():
        assert code == ("F16" if drawn(name) else "F32" if stays_float32(name) else "BF16"), name
    p = "model.layers.2."
    assert codes[p + "memory.q_proj.weight"] == "BF16" and codes[p + "memory.input_gate.bias"] == "F32"
    assert np.array_equal(got[p + "memory.q_proj.weight"], got[p + "self_attn.q_proj.weight"])


def test_mixed_dtypes_are_kept_and_dtype_option_wins(tmp_path, copy):
    name = "model.layers.0.mlp.up_proj.weight"
    respoil(copy, lambda t: t.update({name: t[name].half()}))
    convert(copy, tmp_path / "auto")
    assert sources.read_folder(tmp_path / "auto")[1][name] == "F16"
    convert(copy, tmp_path / "bf", dtype="bfloat16")
    got, codes = sources.read_folder(tmp_path / "bf")
    assert codes[name] == "BF16" and codes["model.norm.weight"] == "F32"
    want = load_file(copy / "model.safetensors")[name].bfloat16().float().numpy()
    assert np.array_equal(got[name], want)


def test_float64_stays(tmp_path, plain):
    src = sources.save_hf(sources.llama().double(), tmp_path / "src")
    convert(src, tmp_path / "dst")
    got = load_file(tmp_path / "dst" / "model.safetensors")
    want = load_file(src / "model.safetensors")
    assert all(torch.equal(got[k], v) and got[k].dtype == torch.float64 for k, v in want.items())
    assert got["model.layers.1.memory.norm.weight"].dtype == torch.float64


def test_too_large_for_float16(tmp_path, copy):
    respoil(copy, lambda t: t["model.layers.1.mlp.up_proj.weight"].view(-1)[3:4].fill_(1e6))
    with pytest.raises(ConvertError, match=r"layers\.1\.mlp\.up_proj\.weight holds 1e\+06, too large for F16"):
        convert(copy, tmp_path / "dst", dtype="float16")
    assert not (tmp_path / "dst").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_not_finite(tmp_path, copy, dtype, bad):
    name = "model.layers.2.self_attn.o_proj.weight"

    def change(t):
        t[name] = t[name].to(dtype)
        t[name].view(-1)[-1] = bad

    respoil(copy, change)
    with pytest.raises(ConvertError, match=f"{name} holds NaN or infinity"):
        convert(copy, tmp_path / "dst")
    assert not (tmp_path / "dst").exists() and not list(tmp_path.glob(".dst*"))


SPOILED = {
    "shape": (lambda t: t.update({"model.norm.weight": torch.ones(63)}), r"model\.norm\.weight is \[63\], its config calls for \[64\]"),
    "missing": (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), r"no tensor model\.layers\.1\.mlp\.up_proj\.weight.*\[96, 64\]"),
    "missing attention": (lambda t: t.pop("model.layers.1.self_attn.k_proj.weight"), r"no tensor model\.layers\.1\.self_attn\.k_proj"),
    "attention shape": (
        lambda t: t.update({"model.layers.1.self_attn.k_proj.weight": torch.ones(30, 64)}),
        r"k_proj\.weight is \[30, 64\]",
    ),
    "extra": (lambda t: t.update({"score.weight": torch.ones(2, 64)}), r"tensor score\.weight \[2, 64\], its config does not call"),
    "norms of queries": (
        lambda t: t.update({"model.layers.1.self_attn.q_norm.weight": torch.ones(16)}),
        r"tensor model\.layers\.1\.self_attn\.q_norm\.weight \[16\], its config does not call",
    ),
    "biases": (
        lambda t: t.update({"model.layers.1.self_attn.q_proj.bias": torch.ones(64)}),
        r"tensor model\.layers\.1\.self_attn\.q_proj\.bias \[64\], its config does not call",
    ),
    "tied head": (lambda t: t.update({"lm_head.weight": torch.ones(96, 64)}), "tie_word_embeddings is true but lm_head.weight differs"),
    "integers": (lambda t: t.update({"model.norm.weight": torch.ones(64, dtype=torch.int8)}), "model.norm.weight has dtype I8"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_weights_that_contradict_the_config(tmp_path, copy, case):
    change, message = SPOILED[case]
    respoil(copy, change)
    with pytest.raises(ConvertError, match=message):
        convert(copy, tmp_path / "dst")
    assert not (tmp_path / "dst").exists()


def test_harmless_extras_are_accepted(tmp_path, copy):
    def change(t):
        t["lm_head.weight"] = t["model.embed_tokens.weight"].clone()
        t["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)

    respoil(copy, change)
    convert(copy, tmp_path / "dst")
    assert "lm_head.weight" not in sources.read_folder(tmp_path / "dst")[0]


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
CONFIGS = {
    "model type": ({"model_type": "mamba"}, ConvertError, "model_type 'mamba' is not supported: lm2 converts models of type .*llama"),
    "already lm2": ({"model_type": "lm2"}, ConvertError, "is an lm2 model already"),
    "quantised": ({"quantization_config": {"quant_method": "gptq"}}, ConvertError, r"quantization_config \(gptq\)"),
    "partial rotary": ({"partial_rotary_factor": 0.5}, ConfigError, "partial_rotary_factor 0.5"),
    "rope": ({"rope_parameters": {"rope_type": "mrope", "factor": 2.0, "rope_theta": 500.0}}, ConfigError, "rope_type 'mrope'"),
    "activation": ({"hidden_act": "gelu"}, ConfigError, "hidden_act 'gelu'"),
    "heads": ({"num_key_value_heads": 3}, ConfigError, "multiple of num_key_value_heads 3"),
    "vocabulary": ({"vocab_size": 97}, ConvertError, r"embed_tokens\.weight is \[96, 64\], its config calls for \[97, 64\]"),
    "layers": ({"num_hidden_layers": 4}, ConvertError, r"no tensor model\.layers\.3\."),
    "number": ({"hidden_size": "64"}, ConfigError, "hidden_size '64'"),
    "two ropes": (
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        ConfigError,
        r"rope_parameters \{'rope_theta': 500.0, .*contradicts rope_scaling \{'factor': 4.0",
    ),
    "two thetas": (
        {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0, "rope_theta": 500.0}, "rope_theta": 10000.0},
        ConfigError,
        r"rope_scaling\.rope_theta 500\.0 must equal rope_theta 10000\.0",
    ),
    "theta of another kind": ({"rope_parameters": None, "rope_theta": "1e4"}, ConfigError, "rope_theta '1e4' must be a positive number"),
    "two types": (
        {"rope_parameters": {"rope_type": "default", "type": "linear", "factor": 2.0}},
        ConfigError,
        r"rope_parameters\.rope_type 'default' must equal rope_parameters\.type 'linear'",
    ),
    "two lengths": (
        {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 64}, "original_max_position_embeddings": 32},
        ConfigError,
        r"rope_parameters\.original_max_position_embeddings 64 must equal original_max_position_embeddings 32",
    ),
    "rope of each kind of layer": ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, ConfigError, "full_attention"),
    "a factor without a type": ({"rope_parameters": {"factor": 4.0}}, ConfigError, r"rope_parameters\.factor 4\.0 is not known"),
    "attention factor": (
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "attention_factor": 2.0}},
        ConfigError,
        r"rope_parameters\.attention_factor 2\.0",
    ),
    "partial rotary inside": (
        {"rope_parameters": {"partial_rotary_factor": 0.5}},
        ConfigError,
        r"rope_parameters\.partial_rotary_factor 0\.5",
    ),
    "no factor": ({"rope_parameters": {"rope_type": "linear"}}, ConfigError, r"rope_parameters\.factor is missing"),
}
# A field of another decoder, each with a value that changes its numbers.
STRANGE = {
    "sliding_window": 4096,
    "_sliding_window_pattern": 6,
    "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
    "logit_scale": 0.0625,
    "attention_multiplier": 0.1,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "num_local_experts": 8,
    "num_experts": 64,
    "use_qk_norm": True,
    "rope_interleaved": True,
    "no_rope_layers": [1, 1, 0],
    "is_causal": False,
    "causal": False,
    "use_rope": False,
    "scale_attn_weights": False,
    "use_bidirectional_attention": True,
    "rotary_pct": 0.5,
    "clip_qkv": 8.0,
    "auto_map": {"AutoModelForCausalLM": "modeling_mine.Mine"},
    "quantization": {"group_size": 64, "bits": 4},
    "per_layer_config": {"1": {"intermediate_size": 48}},
    "of_tomorrow": "yes",
}
ORDINARY = {
    "SmolLM2": {
        "_name_or_path": "checkpoints/final", "is_llama_config": True, "rope_interleaved": False, "pretraining_tp": 1, "use_cache": True,
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}}, "rope_scaling": None, "pad_token_id": 2,
        "rope_parameters": None, "rope_theta": 500, "initializer_range": 0.041666666666666664, "transformers_version": "4.42.3",
    },
    "TinyLlama": {"pretraining_tp": 2, "rope_parameters": None, "rope_theta": 500.0, "rope_scaling": {}, "torch_dtype": "float32"},
    "a finetune": {"unsloth_version": "2024.9", "unsloth_fixed": True, "_attn_implementation_autoset": True, "neftune_noise_alpha": 5, "_flash_attn_2_enabled": True},
    "an old one": {"max_sequence_length": 128, "temperature": 0.9, "top_p": 0.6, "max_length": 4096, "id2label": {"0": "LABEL_0"}, "torchscript": False},
    "every default of transformers 4": {
        "return_dict": True, "output_hidden_states": False, "output_attentions": False, "torchscript": False, "use_bfloat16": False,
        "tf_legacy_loss": False, "pruned_heads": {}, "chunk_size_feed_forward": 0, "is_encoder_decoder": False, "is_decoder": False,
        "cross_attention_hidden_size": None, "add_cross_attention": False, "tie_encoder_decoder": False, "max_length": 20, "num_beams": 1,
        "early_stopping": False, "typical_p": 1.0, "length_penalty": 1.0, "no_repeat_ngram_size": 0, "output_scores": False, "prefix": None,
        "return_dict_in_generate": False, "forced_bos_token_id": None, "finetuning_task": None, "label2id": {"LABEL_0": 0}, "mlp_bias": False,
        "task_specific_params": None, "problem_type": None, "attention_dropout": 0.0, "sep_token_id": None, "decoder_start_token_id": None,
    },
    "all switched off": {
        "sliding_window": None, "layer_types": ["full_attention"] * 3, "logit_scale": 1.0, "num_experts": 0, "auto_map": {}, "logits_scaling": 1,
        "quantization_config": None, "partial_rotary_factor": None, "attention_multiplier": 0.25, "use_qk_norm": False, "is_causal": True, "use_rope": True,
    },
    "windows that are not used": {"sliding_window": 64, "max_window_layers": 2, "use_sliding_window": False},
    "both ropes alike": {"rope_scaling": {"type": "default", "rope_theta": 500.0}, "rope_theta": 500.0},
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIGS)
def test_configs_that_are_refused(tmp_path, copy, case):
    fields, kind, message = CONFIGS[case]
    edit(copy / "config.json", **fields)
    with pytest.raises(kind, match=message):
        convert(copy, tmp_path / "dst")
    assert not (tmp_path / "dst").exists()


@pytest.mark.parametrize("field", STRANGE)
def test_a_field_that_is_not_understood_is_refused_by_name(tmp_path, copy, field):
    edit(copy / "config.json", **{field: STRANGE[field]})
    with pytest.raises(
        ConvertError, match=rf"src/config\.json: {field} .*remove (the field|{field})" if field != "quantization" else field
    ):
        convert(copy, tmp_path / "dst")
    assert not (tmp_path / "dst").exists()


@pytest.mark.parametrize("case", ORDINARY)
def test_an_ordinary_config_converts(tmp_path, plain, copy, case):
    edit(copy / "config.json", **ORDINARY[case])
    convert(copy, tmp_path / "dst")
    assert_close("logits", sources.backbone_logits(tmp_path / "dst", IDS), sources.logits(plain[0], IDS), 0.0)


def test_rope_is_read_as_transformers_reads_it():
    """Every mixture of the two spellings gives transformers' frequencies or is refused; those it writes itself are taken."""
    from copy import deepcopy as copy_of

    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    linear, llama3 = {"type": "linear", "factor": 4.0}, LLAMA3 | {"original_max_position_embeddings": 64}
    blocks = [None, {}, {"rope_theta": 500.0}, linear, linear | {"rope_theta": 500.0}, LLAMA3, llama3, llama3 | {"rope_theta": 500.0}]
    taken = 0
    for new, old, theta, length in itertools.product(blocks, blocks, (None, 500.0), (None, 64)):
        given = {"rope_parameters": new, "rope_scaling": old, "rope_theta": theta, "original_max_position_embeddings": length}
        fields = {"max_position_embeddings": 512, "hidden_size": 64, "num_attention_heads": 4}
        fields |= {k: copy_of(v) for k, v in given.items() if v is not None}  # transformers writes into what it is given
        try:
            rope = read_rope(fields)
        except ConfigError as error:
            assert (new and old) or "rope_theta" in str(error), "only a contradiction is refused"
            continue
        want = LlamaRotaryEmbedding(LlamaConfig.from_dict(fields)).inv_freq
        assert_close(str(fields), np.array(rope.inverse_frequencies(16)), want.numpy(), 1e-6, 1e-5)
        taken += bool(new) or bool(old)
    assert taken > 40


@pytest.mark.parametrize("shard", ["5GB", "60KB"])
def test_an_error_names_the_file_that_is_wrong(tmp_path, shard):
    src = sources.save_hf(sources.llama(tied=False), tmp_path / "src", shard)
    config, generation = src / "config.json", src / "generation_config.json"
    right = config.read_text()
    weights = sorted(src.glob("*.safetensors"))[-1]
    for file, fields, message in (
        (config, {"num_key_value_heads": 3}, "num_attention_heads 4 must be a multiple"),
        (config, {"eos_token_id": 96}, "eos_token_id 96"),
        (generation, {"eos_token_id": [2, 96]}, "eos_token_id 96"),
        (generation, {"bos_token_id": -1}, "bos_token_id -1"),
        (generation, {"top_p": 1.5}, r"top_p 1\.5"),
    ):
        generation.write_text("{}")
        config.write_text(right)
        edit(file, **fields)
        with pytest.raises((ConfigError, ConvertError), match=f"^{file}: {message}"):
            convert(src, tmp_path / "dst")
    generation.unlink()
    edit(config, tie_word_embeddings=True)
    with pytest.raises(ConvertError, match=rf"^{config}: tie_word_embeddings .* in {src}/model.*\.safetensors"):
        convert(src, tmp_path / "dst")
    config.write_text(right)
    edit(config, num_hidden_layers=4)
    listing = src / ("model.safetensors.index.json" if shard == "60KB" else "model.safetensors")
    with pytest.raises(ConvertError, match=rf"^{listing} has no tensor model\.layers\.3\."):
        convert(src, tmp_path / "dst")
    config.write_text(right)
    tensors = load_file(weights)
    name = next(iter(tensors))
    save_file(tensors | {name: torch.ones(3)}, weights)
    with pytest.raises(ConvertError, match=rf"^{weights}: tensor {name} is \[3\]"):
        convert(src, tmp_path / "dst")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk": 256}, "--memory-chunk 256 must not exceed max_position_embeddings 128"),
        ({"slots": 100, "chunk": 64}, "--memory-slots 100 must equal --memory-chunk 64 or a multiple"),
        ({"layers": (1, 9)}, "--memory-layers 9 must be a layer from 0 to 2"),
    ],
)
def test_an_option_that_is_wrong_is_not_called_the_files_fault(tmp_path, plain, options, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        convert(plain[1], tmp_path / "dst", MemoryRequest(**options))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"top_k": 50.0}, {"top_k": 50}),
        ({"top_k": -1, "temperature": None}, {"top_k": 0}),
        ({"do_sample": False, "temperature": 0}, {"temperature": 0.0}),
        ({"top_k": 50.5}, "top_k 50.5 must be a whole number"),
        ({"top_k": "50"}, "top_k '50' must be a whole number"),
        ({"do_sample": "false"}, "do_sample .false. must be true or false"),
        ({"top_k": True}, "top_k True must be a whole number"),
        ({"temperature": "0.7"}, "temperature '0.7' must be a number"),
        ({"temperature": -0.5}, "temperature -0.5 must be a number"),
        ({"temperature": float("nan")}, "temperature nan must be a number"),
        ({"top_p": [0.9]}, r"top_p \[0.9\] must be a number"),
        ({"min_p": 2}, "min_p 2 must be a number"),
        ({"repetition_penalty": 0}, "repetition_penalty 0 must be a number"),
        ({"repetition_penalty": 10**400}, "repetition_penalty 1000"),
        ({"eos_token_id": "2"}, "eos_token_id '2' must be a token id"),
        ({"suppress_tokens": [1] * 300_000}, "generation_config.json: its generation_config.json would have .* read again"),
    ],
)
def test_what_is_converted_can_be_loaded(tmp_path, copy, fields, expected):
    (copy / "generation_config.json").write_text(json.dumps(fields))
    if isinstance(expected, str):
        with pytest.raises(ConvertError, match=rf"{copy}/.*{expected}"):
            convert(copy, tmp_path / "dst")
        assert not (tmp_path / "dst").exists()
        return
    convert(copy, tmp_path / "dst")
    sampling, _ = read_generation(tmp_path / "dst" / "generation_config.json", 96)
    assert expected.items() <= sampling.to_dict().items()


def test_texts_that_loading_would_refuse_are_not_written(tmp_path, copy):
    assert FILE_BYTES_MAX["chat_template.jinja"] == TEMPLATE_BYTES_MAX and FILE_BYTES_MAX["tokenizer.json"] == TOKENIZER_BYTES_MAX
    for template, message in (
        ("x" * (TEMPLATE_BYTES_MAX + 1), "chat_template.jinja would have 1048577 bytes"),
        ("a\ud800", "surrogate pair"),
    ):
        (copy / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
        with pytest.raises(ConvertError, match=message):
            convert(copy, tmp_path / "dst")
        assert not (tmp_path / "dst").exists()


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/x.safetensors", "a\\x.safetensors", "C:x.safetensors", ".x.safetensors", "x.bin", 3]
)
def test_index_must_stay_in_its_folder(tmp_path, copy, name):
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    with pytest.raises(ConvertError, match="must be a .safetensors file in the same folder"):
        convert(copy, tmp_path / "dst")


def test_index_that_contradicts_its_shards(tmp_path):
    src = sources.save_hf(sources.llama(), tmp_path / "src", "60KB")
    index = src / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    for change, message in (
        (lambda m: m.update({"model.extra.weight": m["model.norm.weight"]}), "tensor model.extra.weight is not in"),
        (lambda m: m.pop("model.norm.weight"), "tensor model.norm.weight contradicts"),
        (lambda m: m.update({"model.norm.weight": "a.safetensors"}), r"a\.safetensors does not exist"),
    ):
        bad = json.loads(json.dumps(good))
        change(bad["weight_map"])
        index.write_text(json.dumps(bad))
        with pytest.raises(ConvertError, match=message):
            convert(src, tmp_path / "dst")
    index.write_text("{")
    with pytest.raises(ConvertError, match="not valid JSON"):
        convert(src, tmp_path / "dst")


QUANTISED = {
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4, "C64": 64, "U8": 8, "I8": 8,
    "I32": 32, "F2_OF_TOMORROW": 2,
}  # fmt: skip


def reheader(file, change):
    """Edit the header of a safetensors file; `change` gets its entries and returns the bytes to put after the header, or None for the same."""
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    entries = json.loads(data[8 : 8 + length])
    body = change(entries, data[8 + length :])
    raw = json.dumps(entries).encode()
    file.write_bytes(struct.pack("<Q", len(raw)) + raw + (data[8 + length :] if body is None else body))


@pytest.mark.parametrize("dtype", QUANTISED)
def test_quantised_tensors_are_named_with_the_way_out(tmp_path, copy, dtype):
    name = "model.layers.1.mlp.up_proj.weight"

    def change(entries, body):
        nbytes = 96 * 64 * QUANTISED[dtype] // 8
        begin, end = entries[name]["data_offsets"]
        entries[name] = {"dtype": dtype, "shape": [96, 64], "data_offsets": [begin, begin + nbytes]}
        for other in entries.values():
            if "data_offsets" in other and other["data_offsets"][0] >= end:
                other["data_offsets"] = [n - (end - begin) + nbytes for n in other["data_offsets"]]
        return body[:begin] + bytes(nbytes) + body[end:]

    reheader(copy / "model.safetensors", change)
    with pytest.raises(ConvertError, match=rf"tensor {name}.* dtype '?{dtype}.*: convert the unquantised checkpoint$"):
        convert(copy, tmp_path / "dst")
    assert not (tmp_path / "dst").exists()


def no_metadata(entries):
    entries["__metadata__"] = None


def another_order(entries):
    for name in sorted(entries):
        entries[name] = entries.pop(name)


def more_fields(entries):
    entries["model.norm.weight"]["note"] = "kept"


@pytest.mark.parametrize("change", [no_metadata, another_order, more_fields])
def test_headers_that_the_safetensors_library_takes(tmp_path, plain, copy, change):
    reheader(copy / "model.safetensors", lambda entries, body: change(entries))
    if change is not another_order:  # a session file is this project's own, and is held to what it writes
        raw = (copy / "model.safetensors").read_bytes()
        with pytest.raises(TensorFileError):
            parse_header(copy, raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
    load_file(copy / "model.safetensors")
    convert(copy, tmp_path / "dst")
    assert_close("logits", sources.backbone_logits(tmp_path / "dst", IDS), sources.logits(plain[0], IDS), 0.0)


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_cut_weights(tmp_path, copy, cut):
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(ConvertError, match=r"model\.safetensors.*download the file again"):
        convert(copy, tmp_path / "dst")


def test_sources_that_are_none(tmp_path, copy):
    with pytest.raises(ConvertError, match="does not exist .download a hub model first"):
        convert(type(tmp_path)("owner/model"), tmp_path / "dst")
    with pytest.raises(ConvertError, match="give the folder"):
        convert(copy / "model.safetensors", tmp_path / "dst")
    with pytest.raises(ConvertError, match="is not a GGUF file"):
        convert(copy / "config.json", tmp_path / "dst")
    with pytest.raises(ConvertError, match="--config is for released checkpoints"):
        convert(copy, tmp_path / "dst", config=copy / "config.json")
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ConvertError, match="neither model.safetensors nor .* save the model again"):
        convert(copy, tmp_path / "dst")
    (copy / "config.json").unlink()
    with pytest.raises(ConvertError, match="has no config.json"):
        convert(copy, tmp_path / "dst")


def test_destination_that_exists(tmp_path, plain):
    (tmp_path / "dst").mkdir()
    (tmp_path / "dst" / "mine.txt").write_text("keep")
    with pytest.raises(WriteError, match="exists already"):
        convert(plain[1], tmp_path / "dst")
    assert (tmp_path / "dst" / "mine.txt").read_text() == "keep"


def test_files_around_the_weights(tmp_path, copy):
    tokenizer = sources.byte_level_tokenizer(__import__("tokenizers").pre_tokenizers.ByteLevel(add_prefix_space=False), size=96 + 200)
    edit(copy / "config.json", eos_token_id=2)
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 2], "temperature": 0.7, "top_k": None}))
    (copy / "tokenizer_config.json").write_text(json.dumps({"chat_template": "plain"}))
    summary = convert(copy, tmp_path / "a", name="mine", generation={"temperature": 0.1, "top_p": 0.9})
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["eos_token_id"] == [5, 2] and config["bos_token_id"] == 1 and config["name"] == "mine"
    assert json.loads((tmp_path / "a" / "generation_config.json").read_text()) == {"eos_token_id": [5, 2], "temperature": 0.7, "top_p": 0.9}
    assert (tmp_path / "a" / "chat_template.jinja").read_text() == "plain"
    assert not summary["tokenizer"] and "no tokenizer.json" in summary["notes"][0]
    record = json.loads((tmp_path / "a" / "source.json").read_text())
    assert record["format"] == "huggingface" and record["seed"] == 0
    assert record["files"][0] == {
        "file": "model.safetensors",
        "bytes": (copy / "model.safetensors").stat().st_size,
        "sha256": sha256(copy / "model.safetensors"),
    }
    many = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "chosen"}]
    (copy / "tokenizer_config.json").write_text(json.dumps({"chat_template": many}))
    convert(copy, tmp_path / "b")
    assert (tmp_path / "b" / "chat_template.jinja").read_text() == "chosen"
    (copy / "chat_template.jinja").write_text("own file")
    convert(copy, tmp_path / "c")
    assert (tmp_path / "c" / "chat_template.jinja").read_text() == "own file"
    (copy / "chat_template.jinja").unlink()
    (copy / "tokenizer_config.json").write_text(json.dumps({"chat_template": many[:1]}))
    with pytest.raises(ConvertError, match="none called 'default'"):
        convert(copy, tmp_path / "d")
    (copy / "tokenizer_config.json").unlink()
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(ConvertError, match="is not a tokenizer.json"):
        convert(copy, tmp_path / "d")
    tokenizer.save(str(copy / "tokenizer.json"))
    with pytest.raises(ConvertError, match="vocab_size is 96: tokenizer and weights are not of one model"):
        convert(copy, tmp_path / "d")


def test_tokenizer_is_copied_byte_for_byte(tmp_path):
    from tokenizers import pre_tokenizers

    tokenizer = sources.byte_level_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False))
    src = sources.save_hf(sources.llama(vocab=tokenizer.get_vocab_size() + 5), tmp_path / "src")
    tokenizer.save(str(src / "tokenizer.json"))
    assert convert(src, tmp_path / "dst")["tokenizer"]
    assert (tmp_path / "dst" / "tokenizer.json").read_bytes() == (src / "tokenizer.json").read_bytes()


def test_fingerprint_needs_no_second_pass_and_is_right(tmp_path, plain):
    summary = convert(plain[1], tmp_path / "dst")
    assert json.loads((tmp_path / "dst" / FINGERPRINT).read_text())["fingerprint"] == summary["fingerprint"]
    (tmp_path / "dst" / FINGERPRINT).unlink()
    assert open_folder(tmp_path / "dst").fingerprint == summary["fingerprint"]
    again = convert(plain[1], tmp_path / "again", MemoryRequest(seed=0))
    other = convert(plain[1], tmp_path / "other", MemoryRequest(seed=1))
    assert again["fingerprint"] == summary["fingerprint"] != other["fingerprint"]
