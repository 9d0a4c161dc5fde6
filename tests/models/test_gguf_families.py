"""GGUF files of other families than Llama: what transformers computes, and what is refused."""

from dataclasses import replace

import family_kit as kit
import numpy as np
import pytest
import sources
from family_kit import IDS

from lm2.models.checkpoints import gguf_families, gguf_file
from lm2.models.checkpoints.convert import convert
from lm2.models.errors import ConfigError, ConvertError

SHAPES = [("gemma3", "both ropes"), ("gemma3", "window"), ("gemma3", "no window"), ("qwen2", "grouped"), ("qwen3", "own width"), ("qwen3", "grouped"), ("granite", "tied"), ("granite", "untied"), ("smollm3", "every fourth")]
# Seven layers: the sixth sees everything. A local base other than what is taken for a missing key; scores divided by the head's width, as llama.cpp has it.
SEVEN = dict(num_hidden_layers=7, query_pre_attn_scalar=16, head_dim=16, layer_types=["full_attention" if i == 5 else "sliding_attention" for i in range(7)])
GEMMA3 = {
    "both ropes": dict(sliding_window=8, rope_parameters={"full_attention": kit.TWO["full_attention"], "sliding_attention": {"rope_type": "default", "rope_theta": 60.0}}),
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
        full = c.rope_parameters["full_attention"]
        if full["rope_type"] == "linear":
            writer.add_rope_scaling_type(scaling("linear"))
            writer.add_rope_scaling_factor(full["factor"])

    return keys


def written_gemma3(path, name, kind="F32", keys=None, **more):
    """Its converter adds 1 to the norms and gives the two after attention and MLP names of their own."""
    model = kit.checkpoint("gemma3_text", "grouped", **SEVEN | GEMMA3[name] | more)
    sources.write_gguf(path, model, kind, architecture="gemma3", keys=keys or gemma_keys(model.config), apart=True, raised=True, parts={
        "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm"})  # fmt: skip
    return model


def written(path, family, name, kind="F32", keys=None, **more):
    """A model and its GGUF as llama.cpp's converter writes it."""
    if family == "gemma3":
        return written_gemma3(path, name, kind, keys, **more)
    more |= {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
    model = kit.checkpoint(family, name, **more) if name in kit.FAMILIES[family][1] else kit.checkpoint(family, "grouped", **FOUR, no_rope_layers=None, **more)
    keys = scales(model.config) if family == "granite" and keys is None else keys
    sources.write_gguf(path, model, kind, architecture=family, keys=keys, apart=gguf_families.ARCHITECTURES[family].pairs_apart)
    return model


@pytest.mark.parametrize(("family", "name"), SHAPES)
def test_a_file_computes_what_transformers_does(tmp_path, family, name):
    model = written(tmp_path / "m.gguf", family, name)
    convert(tmp_path / "m.gguf", tmp_path / "dst")
    assert kit.error(kit.backend_logits(tmp_path / "dst", IDS), sources.logits(model, IDS)) < kit.GATE


@pytest.mark.parametrize(("family", "name"), [("qwen2", "grouped"), ("granite", "tied"), ("gemma3", "both ropes")])
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


UNREAD = {  # a key that is not read is refused, not left out
    "a key": r"granite\.residual_scale is 0\.2.*: only plain granite decoders can be converted",
    "base key": r"gemma3\.rope\.freq_base_swa is 60\.0: only plain gemma3 decoders can be converted",
    "window key": r"gemma3\.attention\.sliding_window is 64: only plain gemma3 decoders can be converted",
    "layers without a window": "layer_types has sliding_attention, and sliding_window None says that no layer has a window",
}
FAULTS = {
    "order of rows": ("qwen3", "own width", dict(pairs_apart=False)),
    "order of other rows": ("granite", "untied", dict(pairs_apart=True)),
    "a key": ("granite", "untied", dict(numbers={k: v for k, v in gguf_families.ARCHITECTURES["granite"].numbers.items() if k != "residual_scale"})),
    "norms": ("gemma3", "both ropes", dict(fold=None)),
    "rows of gemma3": ("gemma3", "both ropes", dict(pairs_apart=False)),
    "local base": ("gemma3", "window", dict(fields=said(rope_parameters={"full_attention": {"rope_theta": 700.0}, "sliding_attention": {"rope_theta": 700.0}}))),
    "window": ("gemma3", "both ropes", dict(fields=said(sliding_window=9))),
    "layer pattern": ("gemma3", "both ropes", dict(fields=said(sliding_window_pattern=4))),
    "layers without a window": ("gemma3", "no window", dict(fields=said(layer_types=None))),
    "divisor": ("gemma3", "window", dict(fields=said(query_pre_attn_scalar=256))),
    "base key": ("gemma3", "both ropes", dict(numbers={k: v for k, v in gguf_families.ARCHITECTURES["gemma3"].numbers.items() if k != "rope.freq_base_swa"})),
    "window key": ("gemma3", "window", dict(numbers={})),
    "layers that turn": ("smollm3", "every fourth", dict(fields=lambda fields: {"no_rope_layer_interval": 9})),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_part_left_out_is_noticed(tmp_path, fault, monkeypatch):
    family, name, change = FAULTS[fault]
    model = written(tmp_path / "m.gguf", family, name)
    right = gguf_families.ARCHITECTURES
    monkeypatch.setattr(gguf_file, "ARCHITECTURES", dict(right) | {family: replace(right[family], **change)})
    if fault in UNREAD:
        with pytest.raises((ConvertError, ConfigError), match=UNREAD[fault]):
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


@pytest.mark.parametrize(
    ("family", "name", "keys", "message"),
    [
        ("qwen2", "grouped", lambda w: w.add_sliding_window(32), "qwen2.attention.sliding_window is 32: only plain qwen2 decoders"),
        ("qwen3", "grouped", lambda w: w.add_expert_count(8), "qwen3.expert_count is 8: only plain qwen3 decoders"),
        ("qwen3", "grouped", lambda w: w.add_rope_scaling_type(scaling("yarn")), "rope.scaling.type 'yarn' .* is not supported"),
        ("qwen2", "grouped", lambda w: w.add_embedding_scale(12.0), "qwen2.embedding_scale is 12.0: only plain qwen2"),
        ("gemma3", "window", lambda w: w.add_final_logit_softcapping(30.0), "gemma3.final_logit_softcapping is 30.0: only plain gemma3 decoders"),
        ("gemma3", "window", lambda w: w.add_sliding_window_pattern([True] * 7), r"gemma3.attention.sliding_window_pattern is \[True.*expected a positive number"),
        ("granite", "untied", lambda w: w.add_logit_scale(-8.0), "granite.logit_scale is -8.0, expected a positive number"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(tmp_path, family, name, keys, message):
    written(tmp_path / "m.gguf", family, name, keys=keys)
    with pytest.raises(ConvertError, match=f"m.gguf: .*{message}"):
        convert(tmp_path / "m.gguf", tmp_path / "dst")


def test_gemma3_keys_say_what_is_taken_without_them(tmp_path):
    """A window's pattern and the window itself; in the model of 62 layers scores are divided by hidden size over heads."""
    def every_third(writer):
        gemma_keys(model.config)(writer)
        writer.add_sliding_window_pattern(3)

    kinds = ["full_attention" if i % 3 == 2 else "sliding_attention" for i in range(7)]
    model = kit.checkpoint("gemma3_text", "grouped", **SEVEN | GEMMA3["both ropes"] | dict(layer_types=kinds))
    written(tmp_path / "m.gguf", "gemma3", "both ropes", keys=every_third, layer_types=kinds)
    assert convert(tmp_path / "m.gguf", tmp_path / "dst")["notes"] == ["5 of 7 layers see the last 8 tokens, as the model was made; it has 64 positions"]
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
