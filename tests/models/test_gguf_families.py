"""GGUF files of other families than Llama: what transformers computes, and what is refused."""

from dataclasses import replace

import family_kit as kit
import numpy as np
import pytest
import sources
from family_kit import IDS

from lm2.models.checkpoints import gguf_families, gguf_file
from lm2.models.checkpoints.convert import convert
from lm2.models.checkpoints.families import folds
from lm2.models.checkpoints.families.registry import FAMILIES
from lm2.models.config import read_config
from lm2.models.errors import ConvertError

YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 1.5, "beta_slow": 0.25}
SHAPES = [
    ("gemma3", "both ropes"), ("gemma3", "window"), ("gemma3", "no window"), ("qwen2", "grouped"), ("qwen2", "yarn"), ("qwen3", "own width"), ("qwen3", "grouped"),
    ("granite", "tied"), ("granite", "untied"), ("smollm3", "every fourth"), ("gemma", "grouped"), ("phi3", "grouped"), ("phi3", "part"), ("phi3", "long"),
    ("seed_oss", "inner"), ("seed_oss", "outer"), ("ernie4_5", "grouped"), ("ernie4_5", "own width"), ("olmo2", "grouped"), ("olmo2", "biases"),
    ("olmo3", "grouped"), ("olmo3", "alike"), ("olmo3", "yarn"), ("exaone4", "grouped"), ("exaone4", "no window"), ("glm4", "grouped"), ("glm4", "own width"),
    ("glm", "grouped"), ("glm", "third"),
]  # fmt: skip
NAMES = {"olmo3": "olmo2", "glm": "chatglm"}  # where llama.cpp's is not the family's
MORE = {  # checkpoints beside the families' own
    ("qwen2", "yarn"): ("grouped", dict(rope_parameters=YARN)),
    ("olmo3", "yarn"): ("grouped", dict(rope_parameters={"full_attention": YARN, "sliding_attention": {"rope_type": "default", "rope_theta": 500.0}})),
    ("gemma", "grouped"): ("grouped", dict(rope_parameters={"rope_type": "default", "rope_theta": 10000.0})),
}
# Seven layers: the sixth sees everything. A local base other than what is taken for a missing key; scores divided by the head's width, as llama.cpp has it.
SEVEN = dict(num_hidden_layers=7, query_pre_attn_scalar=16, head_dim=16, layer_types=["full_attention" if i == 5 else "sliding_attention" for i in range(7)])
GEMMA3 = {
    "both ropes": dict(sliding_window=24, rope_parameters={"full_attention": kit.TWO["full_attention"], "sliding_attention": {"rope_type": "default", "rope_theta": 60.0}}),
    "window": dict(sliding_window=64, rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 700.0}, "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}),
    "no window": dict(sliding_window=64, layer_types=["full_attention"] * 7, tie_word_embeddings=False),
}
FOUR = kit.SQUARE | dict(num_hidden_layers=5, tie_word_embeddings=True)


def scales(c):
    def keys(writer):
        writer.add_attention_scale(c.attention_multiplier)
        writer.add_embedding_scale(c.embedding_multiplier)
        writer.add_residual_scale(c.residual_multiplier)
        writer.add_logit_scale(c.logits_scaling)

    return keys


def gemma_keys(c):
    """What the converter writes beside a Llama's keys; a key that says what is taken without it is left out."""
    sliding, local = "sliding_attention" in c.layer_types, c.rope_parameters["sliding_attention"]["rope_theta"]

    def keys(writer):
        if sliding:
            writer.add_sliding_window(c.sliding_window)
        if local != 10000.0:
            writer.add_rope_freq_base_swa(local)
        scaled_rope(writer, c.rope_parameters["full_attention"])

    return keys


def written_gemma3(path, name, kind="F32", keys=None, **more):
    """Its converter adds 1 to the norms and gives the two after attention and MLP names of their own."""
    model = kit.checkpoint("gemma3_text", "grouped", **SEVEN | GEMMA3[name] | more)
    sources.write_gguf(path, model, kind, architecture="gemma3", keys=keys or gemma_keys(model.config), apart=True, raised=True, parts={
        "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm"})  # fmt: skip
    return model


def scaled_rope(writer, rope):
    """What the converter's base class writes of a scaled rope."""
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(scaling("linear"))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(scaling("yarn"))
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
        writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])


def converter_keys(c, writer):
    """What the converter's class of a family writes beside a Llama's keys."""
    rope = c.rope_parameters
    scaled_rope(writer, rope.get("full_attention", rope))
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    part = rope.get("partial_rotary_factor", 1.0)
    if c.model_type == "phi3":
        original, most = rope.get("original_max_position_embeddings", c.max_position_embeddings), c.max_position_embeddings
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_dimension_count(int(part * c.hidden_size) // c.num_attention_heads)
        writer.add_sliding_window(c.sliding_window or 0)
        if rope["rope_type"] == "longrope":
            writer.add_rope_scaling_attn_factors((1 + np.log(most / original) / np.log(original)) ** 0.5)
    if c.model_type in ("glm", "glm4"):
        writer.add_rope_dimension_count(int(part * head_dim))
    if c.model_type in ("olmo3", "exaone4") and c.sliding_window is not None:
        writer.add_sliding_window(c.sliding_window)
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in c.layer_types])
    if c.model_type == "olmo3":
        writer.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])
    if c.model_type == "exaone4":
        writer.add_vocab_size(c.vocab_size)


def converter_tensors(model):
    """Tensors that the converter makes of others, and the names of those it leaves out."""
    c, state, more = model.config, sources.weights(model), {}
    if c.model_type == "phi3" and c.rope_parameters["rope_type"] == "longrope":
        for name in ("long", "short"):
            more[f"rope_factors_{name}.weight"] = np.array(c.rope_parameters[f"{name}_factor"], np.float32)
    if c.model_type != "glm":
        return more, ()
    parts = [name for name in state if any(f".{x}_proj." in name for x in "qkv")]
    for i in range(c.num_hidden_layers):  # as the checkpoints that are older than the family have them
        for kind in ("weight", "bias"):
            more[f"blk.{i}.attn_qkv.{kind}"] = np.concatenate([state[f"model.layers.{i}.self_attn.{x}_proj.{kind}"] for x in "qkv"])
    return more, parts


def written(path, family, name, kind="F32", keys=None, drop=(), **more):
    """A model and its GGUF as llama.cpp's converter writes it, its names by the `gguf` package's table."""
    from gguf import get_tensor_name_map
    from gguf.constants import MODEL_ARCH

    if family == "gemma3":
        return written_gemma3(path, name, kind, keys, **more)
    label = NAMES.get(family, family)
    own, fields = MORE.get((family, name), (name, {}))
    plain = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}} if family in ("qwen2", "qwen3", "granite", "smollm3") else {}
    more = plain | fields | more
    model = kit.checkpoint(family, own, **more) if own in kit.FAMILIES[family][1] else kit.checkpoint(family, "grouped", **FOUR, no_rope_layers=None, **more)

    def both(writer):
        if family == "granite" and keys is None:
            scales(model.config)(writer)
        converter_keys(model.config, writer)
        if keys:
            keys(writer)

    names = get_tensor_name_map(MODEL_ARCH[label.upper()], model.config.num_hidden_layers)
    made, left_out = converter_tensors(model)
    rename = {key: names.get_name(key, (".weight", ".bias")) for key in sources.weights(model)}
    sources.write_gguf(
        path, model, kind, architecture=label, keys=both, apart=family not in ("granite", "smollm3"), raised=family == "gemma", rename=rename,
        extra={key: value for key, value in made.items() if key not in drop}, drop=left_out,
    )  # fmt: skip
    return model


@pytest.mark.parametrize(("family", "name"), SHAPES)
def test_a_file_computes_what_transformers_does(tmp_path, family, name):
    model = written(tmp_path / "m.gguf", family, name)
    dst = tmp_path / "dst"
    convert(tmp_path / "m.gguf", dst)
    assert kit.error(kit.backend_logits(dst, IDS), sources.logits(model, IDS)) < kit.GATE
    got = kit.greedy(lambda ids: kit.backend_logits(dst, ids), IDS[:, :12])
    assert np.array_equal(got, kit.greedy(lambda ids: sources.logits(model, ids), IDS[:, :12]))


@pytest.mark.parametrize(("family", "name"), [("qwen2", "grouped"), ("granite", "tied"), ("gemma3", "both ropes"), ("phi3", "grouped"), ("glm4", "own width")])
def test_a_quantised_file_has_the_values_of_the_gguf_package(tmp_path, family, name):
    """Through the fold as well: the same as converting its dequantised values."""
    import torch
    from gguf.constants import GGMLQuantizationType as Kind
    from gguf.quants import dequantize, quantize

    fields = dict(hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2)
    model = written(tmp_path / "m.gguf", family, name, "Q8_0", **fields)
    convert(tmp_path / "m.gguf", tmp_path / "dst")
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:  # a row is rounded by itself: their order does not matter
                p.copy_(torch.from_numpy(dequantize(quantize(np.ascontiguousarray(p.numpy()), Kind.Q8_0), Kind.Q8_0)))
    assert kit.error(kit.backend_logits(tmp_path / "dst", IDS), sources.logits(model, IDS)) < kit.GATE


def said(**fields):
    """Gemma 3's fields with some said otherwise."""
    return lambda given: gguf_families.gemma3(given) | fields


def said_of(name, **fields):
    """An architecture's fields with some said otherwise."""
    return dict(fields=lambda given: gguf_families.ARCHITECTURES[name].fields(given) | fields)


def rope(**words):
    """Rotary settings with some said otherwise."""
    return dict(fields=lambda given: {"rope_parameters": given["rope_parameters"] | words})


def swapped(name):
    """The parts of a layer, the norms after attention and MLP by each other's name."""
    parts = dict(gguf_families.ARCHITECTURES[name].parts)
    return parts | {"post_attention_norm": parts["post_ffw_norm"], "post_ffw_norm": parts["post_attention_norm"]}


def exchanged(fold, one, other):
    """A fold that takes one part of a layer for another."""
    return dict(fold=lambda tensors, fields: folds.renamed(fold(tensors, fields), {one: other, other: one}))


UNREAD = {  # a key that is not read is refused, not left out
    "a key": r"granite\.residual_scale is 0\.2.*: only plain granite decoders can be converted",
    "base key": r"gemma3\.rope\.freq_base_swa is 60\.0: only plain gemma3 decoders can be converted",
    "window key": r"gemma3\.attention\.sliding_window is 64: only plain gemma3 decoders can be converted",
}
FAULTS = {
    "order of rows": ("qwen3", "own width", dict(pairs_apart=False)),
    "order of other rows": ("granite", "untied", dict(pairs_apart=True)),
    "a key": ("granite", "untied", dict(numbers={k: v for k, v in gguf_families.ARCHITECTURES["granite"].numbers.items() if k != "residual_scale"})),
    "norms": ("gemma3", "both ropes", dict(fold=None)),
    "rows of gemma3": ("gemma3", "both ropes", dict(pairs_apart=False)),
    "local base": ("gemma3", "window", dict(fields=said(rope_parameters={"full_attention": {"rope_theta": 700.0}, "sliding_attention": {"rope_theta": 700.0}}))),
    "layer pattern": ("gemma3", "both ropes", dict(fields=said(sliding_window_pattern=4))),
    "layers without a window": ("gemma3", "no window", dict(fields=said(layer_types=None))),
    "divisor": ("gemma3", "window", dict(fields=said(query_pre_attn_scalar=256))),
    "base key": ("gemma3", "both ropes", dict(numbers={k: v for k, v in gguf_families.ARCHITECTURES["gemma3"].numbers.items() if k != "rope.freq_base_swa"})),
    "window key": ("gemma3", "window", dict(numbers={})),
    "layers that turn": ("smollm3", "every fourth", dict(fields=lambda fields: {"no_rope_layer_interval": 9})),
    "yarn": ("qwen2", "yarn", dict(fields=lambda given: {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}})),
    "range of yarn": ("qwen2", "yarn", rope(beta_fast=32.0)),
    "original length": ("qwen2", "yarn", rope(original_max_position_embeddings=64)),
    "size of yarn": ("qwen2", "yarn", rope(attention_factor=1.0)),
    "norms of gemma": ("gemma", "grouped", dict(fold=None)),
    "rows of gemma": ("gemma", "grouped", dict(pairs_apart=False)),
    "gate and up of phi3": ("phi3", "part", exchanged(FAMILIES["phi3"].fold, "mlp.gate_proj", "mlp.up_proj")),
    "part of phi3": ("phi3", "part", dict(fields=lambda fields: {"partial_rotary_factor": 1.0})),
    "factors of longrope": ("phi3", "long", rope(short_factor=[1.0] * 5)),
    "size of longrope": ("phi3", "long", rope(attention_factor=1.0)),
    "rows of seed_oss": ("seed_oss", "inner", dict(pairs_apart=False)),
    "rows of ernie4_5": ("ernie4_5", "grouped", dict(pairs_apart=False)),
    "rows of olmo2": ("olmo2", "grouped", dict(pairs_apart=False)),
    "local rope of olmo3": ("olmo3", "grouped", said_of("olmo2", layer_types=["full_attention"] * 3)),
    "layers of olmo3": ("olmo3", "grouped", said_of("olmo2", layer_types=["sliding_attention"] * 3)),
    "norms of olmo2": ("olmo2", "grouped", dict(parts=swapped("olmo2"))),
    "rows of exaone4": ("exaone4", "grouped", dict(pairs_apart=False)),
    "layers of exaone4": ("exaone4", "grouped", said_of("exaone4", layer_types=["sliding_attention"] * 3)),
    "norms of glm4": ("glm4", "grouped", dict(parts=swapped("glm4"))),
    "rows of glm4": ("glm4", "grouped", dict(pairs_apart=False)),
    "part of glm4": ("glm4", "own width", dict(fields=lambda fields: {"partial_rotary_factor": 0.5})),
    "part of glm": ("glm", "third", dict(fields=lambda fields: {"partial_rotary_factor": 1.0})),
    "order of q, k, v": ("glm", "grouped", exchanged(gguf_families.joined_qkv, "self_attn.k_proj", "self_attn.v_proj")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_part_left_out_is_noticed(tmp_path, fault, monkeypatch):
    family, name, change = FAULTS[fault]
    model = written(tmp_path / "m.gguf", family, name)
    right = gguf_families.ARCHITECTURES
    label = NAMES.get(family, family)
    monkeypatch.setattr(gguf_file, "ARCHITECTURES", dict(right) | {label: replace(right[label], **change)})
    if fault in UNREAD:
        with pytest.raises(ConvertError, match=UNREAD[fault]):
            convert(tmp_path / "m.gguf", tmp_path / "dst")
        return
    convert(tmp_path / "m.gguf", tmp_path / "dst")
    assert kit.error(kit.backend_logits(tmp_path / "dst", IDS), sources.logits(model, IDS)) > kit.FAULT


def test_scales_of_nothing_are_none(tmp_path):
    """As llama.cpp reads them: 0, or no key, is no factor, and scores are divided by the root of the head's width."""
    model = written(tmp_path / "m.gguf", "granite", "tied", keys=lambda w: w.add_residual_scale(0.0), attention_multiplier=12**-0.5, **dict.fromkeys(
        ("embedding_multiplier", "residual_multiplier", "logits_scaling"), 1.0))  # fmt: skip
    convert(tmp_path / "m.gguf", tmp_path / "dst")
    assert kit.error(kit.backend_logits(tmp_path / "dst", IDS), sources.logits(model, IDS)) < kit.GATE


def key(name, value):
    """A writer of one key."""
    kinds = {int: "add_uint32", float: "add_float32", str: "add_string", list: "add_array", bool: "add_bool"}
    return lambda writer: getattr(writer, kinds[type(value)])(name, value)


def yarn(**words):
    """A writer of yarn's keys, some said otherwise."""
    def keys(writer):
        writer.add_rope_scaling_type(scaling("yarn"))
        writer.add_rope_scaling_factor(4.0)
        for name, value in words.items():
            writer.add_float32(f"qwen3.rope.scaling.yarn_{name}", value)

    return keys


REFUSED = {
    "a window": ("qwen2", "grouped", lambda w: w.add_sliding_window(32), "qwen2.attention.sliding_window is 32: only plain qwen2 decoders"),
    "experts": ("qwen3", "grouped", lambda w: w.add_expert_count(8), "qwen3.expert_count is 8: only plain qwen3 decoders"),
    "experts of ernie4_5": ("ernie4_5", "grouped", lambda w: w.add_expert_count(64), "ernie4_5.expert_count is 64: only plain ernie4_5 decoders"),
    "longrope": ("qwen3", "grouped", lambda w: w.add_rope_scaling_type(scaling("longrope")), "rope.scaling.type 'longrope' .* is not supported: only linear, yarn and Llama 3.1"),
    "size of yarn": ("qwen3", "grouped", yarn(attn_factor=1.5), "qwen3.rope.scaling.yarn_attn_factor 1.5 must be 1.138629: lm2 computes no other"),
    "share of yarn": ("qwen3", "grouped", yarn(ext_factor=0.5), "qwen3.rope.scaling.yarn_ext_factor 0.5 must be 1"),
    "logarithm of yarn": ("qwen3", "grouped", yarn(log_multiplier=0.1), "qwen3.rope.scaling.yarn_log_multiplier is 0.1.*: only plain qwen3"),
    "yarn's key alone": ("qwen3", "grouped", key("qwen3.rope.scaling.yarn_ext_factor", 1.0), "qwen3.rope.scaling.yarn_ext_factor is 1.0: only plain qwen3"),
    "embeddings": ("qwen2", "grouped", lambda w: w.add_embedding_scale(12.0), "qwen2.embedding_scale is 12.0: only plain qwen2"),
    "a cap of logits": ("gemma3", "window", lambda w: w.add_final_logit_softcapping(30.0), "gemma3.final_logit_softcapping is 30.0: only plain gemma3 decoders"),
    "a cap of scores": ("gemma", "grouped", lambda w: w.add_attn_logit_softcapping(50.0), "gemma.attn_logit_softcapping is 50.0: only plain gemma decoders"),
    "a list of layers": ("gemma3", "window", lambda w: w.add_sliding_window_pattern([True] * 7), r"gemma3.attention.sliding_window_pattern is \[True.*expected a positive whole number"),
    "a pattern of nothing": ("gemma3", "window", lambda w: w.add_sliding_window_pattern(0), "gemma3.attention.sliding_window_pattern is 0, expected a positive whole number"),
    "a logit scale": ("granite", "untied", lambda w: w.add_logit_scale(-8.0), "granite.logit_scale is -8.0, expected a positive number"),
    "scores": ("seed_oss", "inner", lambda w: w.add_attention_scale(1.0), "seed_oss.attention.scale is 1.0: only plain seed_oss decoders"),
    "layers too few": ("olmo2", "grouped", lambda w: w.add_sliding_window_pattern([True, False]), "olmo2.attention.sliding_window_pattern must be a number or a list of 3 times true or false"),
    "a norm of layers": ("olmo2", "grouped", lambda w: w.add_clamp_kqv(8.0), "olmo2.attention.clamp_kqv is 8.0: only plain olmo2 decoders"),
    "a local base": ("exaone4", "grouped", lambda w: w.add_rope_freq_base_swa(60.0), "exaone4.rope.freq_base_swa is 60.0: only plain exaone4 decoders"),
    "layers that guess ahead": ("exaone4", "no window", lambda w: w.add_nextn_predict_layers(1), "exaone4.nextn_predict_layers is 1: only plain exaone4 decoders"),
    "places of pictures": ("glm4", "grouped", lambda w: w.add_rope_dimension_sections([8, 12, 12, 0]), r"glm4.rope.dimension_sections is \[8, 12, 12, 0\]: only plain glm4 decoders"),
    "a part of nothing": ("phi3", "grouped", key("phi3.rope.scaling.attn_factor", 1.19), "phi3.rope.scaling.attn_factor 1.19 without yarn or longrope is not supported"),
    "two scalings": ("phi3", "long", lambda w: w.add_rope_scaling_factor(4.0), "has linear rope scaling by 4.0 and rope_factors_short.weight: lm2 computes one or the other"),
}  # fmt: skip


@pytest.mark.parametrize("refused", REFUSED)
def test_what_is_not_understood_is_refused_by_name(tmp_path, refused):
    family, name, keys, message = REFUSED[refused]
    written(tmp_path / "m.gguf", family, name, keys=keys)
    with pytest.raises(ConvertError, match=f"m.gguf:? .*{message}"):
        convert(tmp_path / "m.gguf", tmp_path / "dst")
    assert not (tmp_path / "dst").exists()


def test_tensors_that_do_not_go_together_are_refused(tmp_path):
    """Half of longrope's factors, more of a head than there is, and llama.cpp's fused matrix in a family that has none."""
    written(tmp_path / "long.gguf", "phi3", "long", drop=("rope_factors_long.weight",))
    with pytest.raises(ConvertError, match="long.gguf has no tensor rope_factors_long.weight, its longrope scaling needs it"):
        convert(tmp_path / "long.gguf", tmp_path / "dst")
    model = kit.checkpoint("qwen2", "grouped")
    sources.write_gguf(tmp_path / "fused.gguf", model, architecture="qwen2", apart=True, extra={"blk.0.attn_qkv.weight": np.ones((96, 48), np.float32)})
    with pytest.raises(ConvertError, match="fused.gguf: tensor blk.0.attn_qkv.weight is not part of a plain qwen2 decoder"):
        convert(tmp_path / "fused.gguf", tmp_path / "dst")
    model = kit.checkpoint("phi3", "grouped")
    sources.write_gguf(tmp_path / "wide.gguf", model, architecture="phi3", apart=True, keys=key("phi3.rope.dimension_count", 14), parts=gguf_parts("phi3"))
    with pytest.raises(ConvertError, match="wide.gguf: phi3.rope.dimension_count 14 must equal the head size 12"):
        convert(tmp_path / "wide.gguf", tmp_path / "dst")


def gguf_parts(name):
    """Hugging Face's names of an architecture's parts -> llama.cpp's."""
    return {theirs: label for label, theirs in gguf_families.ARCHITECTURES[name].parts.items()}


def test_what_is_taken_for_missing_keys():
    """EXAONE 4 with 64 layers has a window of 4096 and each fourth layer without one; others have none; OLMo's sliding layers turn by the one base."""
    given = dict(num_hidden_layers=64, rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    assert gguf_families.exaone4(given) == {"sliding_window": 4096}
    assert gguf_families.exaone4(given | {"sliding_window": 128}) == {"sliding_window": 128}
    assert gguf_families.exaone4(given | {"num_hidden_layers": 2}) == {"sliding_window": None, "layer_types": ["full_attention"] * 2}
    olmo = gguf_families.olmo(given | {"num_hidden_layers": 5, "sliding_window": 8})
    assert olmo["layer_types"] == ["sliding_attention"] * 3 + ["full_attention", "sliding_attention"]
    assert olmo["rope_parameters"]["sliding_attention"] == given["rope_parameters"]


@pytest.mark.parametrize(("family", "name"), [("phi3", "long"), ("olmo3", "grouped"), ("exaone4", "grouped")])
def test_positions_and_notes_are_those_of_the_folder(tmp_path, family, name):
    """The original length of longrope and sliding windows mean what they mean in config.json."""
    model = written(tmp_path / "m.gguf", family, name)
    got = convert(tmp_path / "m.gguf", tmp_path / "dst")["notes"]
    sources.save_hf(model, tmp_path / "src")
    want = convert(tmp_path / "src", tmp_path / "other")["notes"]
    assert got and set(got) <= set(want)
    assert read_config(tmp_path / "dst").max_position_embeddings == read_config(tmp_path / "other").max_position_embeddings


def test_gemma3_keys_say_what_is_taken_without_them(tmp_path):
    """A window's pattern and the window itself, which limits the positions; in the model of 62 layers scores are divided by hidden size over heads."""
    def every_third(writer):
        gemma_keys(model.config)(writer)
        writer.add_sliding_window_pattern(3)

    kinds = ["full_attention" if i % 3 == 2 else "sliding_attention" for i in range(7)]
    model = kit.checkpoint("gemma3_text", "grouped", **SEVEN | GEMMA3["both ropes"] | dict(layer_types=kinds))
    written(tmp_path / "m.gguf", "gemma3", "both ropes", keys=every_third, layer_types=kinds)
    assert convert(tmp_path / "m.gguf", tmp_path / "dst")["notes"] == ["positions are limited to 24 of 64: up to its sliding_window the model is computed exactly, beyond it is not"]
    assert kit.error(kit.backend_logits(tmp_path / "dst", IDS), sources.logits(model, IDS)) < kit.GATE
    given = dict(num_hidden_layers=62, hidden_size=5376, num_attention_heads=32, head_dim=128, sliding_window=1024, rope_parameters={})
    assert gguf_families.gemma3(given)["query_pre_attn_scalar"] == 168
    assert gguf_families.gemma3(given | {"num_hidden_layers": 48})["query_pre_attn_scalar"] == 128


def scaling(name):
    from gguf.constants import RopeScalingType

    return RopeScalingType(name)


def test_packing_for_mlx_says_the_way_round(tmp_path):
    pytest.importorskip("mlx.core")
    from lm2.lm2_mlx.convert import convert_mlx

    written(tmp_path / "m.gguf", "qwen2", "grouped")
    with pytest.raises(ConvertError, match=r"a GGUF of architecture qwen2 cannot keep its own numbers: make a model folder"):
        convert_mlx(tmp_path / "m.gguf", tmp_path / "dst")
