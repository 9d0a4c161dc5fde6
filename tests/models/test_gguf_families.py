"""GGUF files of other families than Llama: what transformers computes, and what is refused."""

from dataclasses import replace

import family_kit as kit
import numpy as np
import pytest
import sources
from family_kit import IDS
from gguf_kit import GEMMA3, NAMES, SEVEN, gemma_keys, written

from lm2.models.checkpoints import gguf_families, gguf_file
from lm2.models.checkpoints.convert import convert
from lm2.models.checkpoints.families import folds
from lm2.models.checkpoints.families.registry import FAMILIES
from lm2.models.config import read_config
from lm2.models.errors import ConfigError, ConvertError

SHAPES = [
    ("gemma3", "both ropes"), ("gemma3", "window"), ("gemma3", "no window"), ("qwen2", "grouped"), ("qwen2", "yarn"), ("qwen3", "own width"), ("qwen3", "grouped"),
    ("granite", "tied"), ("granite", "untied"), ("smollm3", "every fourth"), ("gemma", "grouped"), ("phi3", "grouped"), ("phi3", "part"), ("phi3", "long"),
    ("seed_oss", "inner"), ("seed_oss", "outer"), ("ernie4_5", "grouped"), ("ernie4_5", "own width"), ("olmo2", "grouped"), ("olmo2", "biases"),
    ("olmo3", "grouped"), ("olmo3", "alike"), ("olmo3", "yarn"), ("exaone4", "grouped"), ("exaone4", "no window"), ("glm4", "grouped"), ("glm4", "own width"),
    ("glm", "grouped"), ("glm", "third"),
]  # fmt: skip


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


@pytest.mark.parametrize("family", ["olmo3", "exaone4"])
def test_each_fourth_layer_sees_everything_where_no_key_says_otherwise(tmp_path, monkeypatch, family):
    kinds = ["full_attention" if i == 3 else "sliding_attention" for i in range(5)]
    monkeypatch.setattr("gguf.GGUFWriter.add_sliding_window_pattern", lambda writer, value: None)
    model = written(tmp_path / "m.gguf", family, "grouped", num_hidden_layers=5, layer_types=kinds)
    convert(tmp_path / "m.gguf", tmp_path / "dst")
    assert kit.error(kit.backend_logits(tmp_path / "dst", IDS), sources.logits(model, IDS)) < kit.GATE


def test_what_is_taken_for_missing_keys():
    """EXAONE 4 with 64 layers has a window of 4096, others have none; OLMo's sliding layers turn by the one base."""
    given = dict(num_hidden_layers=64, rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    assert gguf_families.exaone4(given) == {"sliding_window": 4096, "sliding_window_pattern": 4}
    assert gguf_families.exaone4(given | {"sliding_window": 128}) == {"sliding_window": 128, "sliding_window_pattern": 4}
    assert gguf_families.exaone4(given | {"num_hidden_layers": 2})["layer_types"] == ["full_attention"] * 2
    olmo = gguf_families.olmo(given | {"num_hidden_layers": 5, "sliding_window": 8})
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


def test_packing_for_mlx_says_the_way_round(tmp_path):
    pytest.importorskip("mlx.core")
    from lm2.lm2_mlx.convert import convert_mlx

    written(tmp_path / "m.gguf", "qwen2", "grouped")
    with pytest.raises(ConvertError, match=r"a GGUF of architecture qwen2 cannot keep its own numbers: make a model folder"):
        convert_mlx(tmp_path / "m.gguf", tmp_path / "dst")
