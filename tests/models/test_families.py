"""Families of decoders: each converts to what transformers computes, each fold is needed, and what is not understood is refused by name."""

import json
import re
from dataclasses import replace

import family_kit as kit
import numpy as np
import pytest
import sources
import tiny
import transformers
from family_kit import FAULT, GATE, IDS

from lm2.models.checkpoints.convert import convert
from lm2.models.checkpoints.families import folds, registry
from lm2.models.checkpoints.families.family import unchanged, unlimited
from lm2.models.config import LM2Config, read_config
from lm2.models.errors import ConfigError, ConvertError


@pytest.fixture(scope="module", params=kit.SHAPES, ids="-".join)
def case(request, tmp_path_factory):
    """A checkpoint of every family and shape: transformers' model, its folder, and the converted folder."""
    family, name = request.param
    place = tmp_path_factory.mktemp(family)
    model, src = kit.made(place / "src", family, name)
    convert(src, place / "dst")
    return model, src, place / "dst"


def test_a_memory_never_written_computes_what_transformers_does(case):
    model, _, dst = case
    assert kit.error(kit.backend_logits(dst, IDS), sources.logits(model, IDS)) < GATE
    ids = IDS[:, :12]
    got = kit.greedy(lambda ids: kit.backend_logits(dst, ids), ids)
    assert np.array_equal(got, kit.greedy(lambda ids: sources.logits(model, ids), ids))


@pytest.mark.parametrize("family", kit.FAMILIES)
def test_every_family_is_tested_and_has_the_defaults_of_transformers(family):
    assert set(kit.FAMILIES) == set(registry.FAMILIES)
    theirs = getattr(transformers, f"{kit.FAMILIES[family][0]}Config")().to_dict()
    for name, value in registry.FAMILIES[family].defaults.items():
        assert value == (theirs["rope_parameters"]["rope_theta"] if name == "rope_theta" else theirs[name]), name


def with_fields(**fields):
    """A family whose fold is told other fields than config.json's."""
    return lambda family, patch: replace(family, fold=lambda tensors, config: family.fold(tensors, config | fields))


def without(name, what):
    """A function of folds.py, as a family's module knows it, put out of work."""

    def change(family, patch):
        import importlib

        patch.setattr(importlib.import_module(family.fold.__module__), name, what)
        return family

    return change


BEFORE = {"post_feedforward_layernorm": "input_layernorm"}  # as if OLMo's two norms stood before attention and MLP


def patched_kind(backbone, left_out="", names=None):
    """A family that says another backbone, and has no tensors that match `left_out`."""

    def fold(family, tensors, config):
        tensors = family.fold(tensors, config) if names is None else folds.renamed(tensors, names)
        return {name: tensor for name, tensor in tensors.items() if not re.fullmatch(left_out, name)}

    def change(family, patch):
        return replace(
            family, fields=lambda config: family.fields(config) | {"backbone": backbone(config)}, fold=lambda t, c: fold(family, t, c)
        )

    return change


def said(**changes):
    """A family with other words in its backbone; None takes one out."""

    def backbone(config, family):
        made = family.fields(config)
        words = {k: v for k, v in (made["backbone"] | changes).items() if v is not None}
        return {k: v for k, v in made.items() if k != "hidden_act"} | {"backbone": words}

    return lambda family, patch: replace(family, fields=lambda config: backbone(config, family))


def windowed(change):
    """A family whose layer i has another window than it says, w."""
    return lambda family, patch: replace(family, windows=lambda config: [change(i, w) for i, w in enumerate(family.windows(config))])


def ones(name, rows, like):
    return replace(folds_zeros(name, rows, like), blocks=lambda: iter([np.full(rows, 0.1, np.float32)]))


folds_zeros = folds.zeros
straight = dict(reordered=lambda tensor, order: tensor)
CONTROLS = {
    "mistral: window": ("mistral", "window", lambda f, p: replace(f, windows=unlimited)),
    "mistral: window of one more": ("mistral", "window", windowed(lambda i, w: w + 1)),
    "mistral: window of one less": ("mistral", "window", windowed(lambda i, w: w - 1)),
    "phi3: window": ("phi3", "window", lambda f, p: replace(f, windows=unlimited)),
    "qwen2: window": ("qwen2", "window", lambda f, p: replace(f, windows=unlimited)),
    "qwen2: first layer with a window": ("qwen2", "window", windowed(lambda i, w: 6)),
    "qwen3: window": ("qwen3", "window", lambda f, p: replace(f, windows=unlimited)),
    "smollm3: window": ("smollm3", "window", lambda f, p: replace(f, windows=unlimited)),
    "smollm3: layers with a window": ("smollm3", "window", windowed(lambda i, w: 5)),
    "olmo3: window": ("olmo3", "grouped", lambda f, p: replace(f, windows=unlimited)),
    "olmo3: window of one more": ("olmo3", "grouped", windowed(lambda i, w: w and w + 1)),
    "exaone4: window": ("exaone4", "grouped", lambda f, p: replace(f, windows=unlimited)),
    "exaone4: window of one less": ("exaone4", "grouped", windowed(lambda i, w: w and w - 1)),
    "qwen2: no bias of o": ("qwen2", "grouped", lambda f, p: p.setattr(folds, "zeros", ones)),
    "seed_oss: no bias of o": ("seed_oss", "inner", lambda f, p: p.setattr(folds, "zeros", ones)),
    "seed_oss: no bias of q, k, v": ("seed_oss", "outer", lambda f, p: p.setattr(folds, "zeros", ones)),
    "helium: no bias of o": ("helium", "biases", lambda f, p: p.setattr(folds, "zeros", ones)),
    "helium: order of rows": ("helium", "grouped", without("reordered", straight["reordered"])),
    "ernie4_5: order of rows": ("ernie4_5", "grouped", without("reordered", straight["reordered"])),
    "phi3: order of rows": ("phi3", "part", without("reordered", straight["reordered"])),
    "phi3: part that turns": ("phi3", "part", lambda f, p: replace(f, fields=lambda c: pairs_gone(f.fields(c)))),
    "phi3: attention factor": ("phi3", "long", lambda f, p: replace(f, fields=lambda c: roped(f.fields(c), attention_factor=1.0))),
    "phi3: factors of longrope": ("phi3", "long", lambda f, p: replace(f, fields=lambda c: roped(f.fields(c), short_factor=[1.0] * 5))),
    "phi3: halves of gate and up": ("phi3", "grouped", without("split_rows", lambda t, joined, parts: folds.split_rows(t, joined, turned_about(parts)))),
    "granite: embedding": ("granite", "tied", said(embedding_scale=1 / 0.22)),
    "granite: scores": ("granite", "tied", with_fields(attention_multiplier=12**-0.5)),
    "granite: residual": ("granite", "untied", said(embedding_scale=12.0)),
    "granite: epsilon": ("granite", "untied", lambda f, p: replace(f, fields=lambda c: f.fields(c) | {"rms_norm_eps": c["rms_norm_eps"]})),
    "granite: logits": ("granite", "untied", with_fields(logits_scaling=1.0)),
    "hyperclovax: scores": ("hyperclovax", "grouped", with_fields(attention_multiplier=None)),
    "hyperclovax: residual": ("hyperclovax", "grouped", with_fields(residual_multiplier=1.0)),
    "hyperclovax: logits": ("hyperclovax", "grouped", with_fields(logits_scaling=8.0)),
    "hyperclovax: embedding": ("hyperclovax", "grouped", said(embedding_scale=1.0)),
    "hyperclovax: which norm is which": ("hyperclovax", "grouped", without("renamed", lambda t, names: folds.renamed(t, dict(zip(names, reversed(names.values()), strict=True))))),
    "hyperclovax: residual without norms": ("hyperclovax", "norms before", said(embedding_scale=12.0)),
    "hyperclovax: epsilon": ("hyperclovax", "norms before", lambda f, p: replace(f, fields=lambda c: f.fields(c) | {"rms_norm_eps": c["rms_norm_eps"]})),
    "qwen3: norms of heads": ("qwen3", "grouped", patched_kind(lambda c: {}, r".*[qk]_norm.weight")),
    "olmo2: norms of q and k": ("olmo2", "grouped", patched_kind(lambda c: {"norms": "after"}, r".*[qk]_norm.weight")),
    "olmo2: norms after": ("olmo2", "grouped", patched_kind(lambda c: {"qk_norm": "whole"}, names=BEFORE)),
    "smollm3: layers that turn": ("smollm3", "grouped", patched_kind(lambda c: {})),
    "smollm3: every which layer": ("smollm3", "interval", patched_kind(lambda c: {"no_rope": [0, 2]})),
    "olmo3: ropes by layer": ("olmo3", "grouped", patched_kind(lambda c: {"qk_norm": "whole", "norms": "after"})),
    "exaone4: layers that turn": ("exaone4", "grouped", patched_kind(lambda c: {"qk_norm": "head", "norms": "after"})),
    "exaone4: norms of heads": ("exaone4", "no window", patched_kind(lambda c: {"norms": "after"}, r".*[qk]_norm.weight")),
    "gemma3_text: ropes by layer": ("gemma3_text", "grouped", said(local=None, local_rope=None)),
    "gemma3_text: embeddings": ("gemma3_text", "grouped", said(embedding_scale=1.0)),
    "gemma3_text: activation": ("gemma3_text", "grouped", said(activation="silu")),
    "gemma3_text: norms": ("gemma3_text", "grouped", without("raised", lambda tensor, by: tensor)),
    "gemma3_text: scores": ("gemma3_text", "grouped", without("scaled", lambda tensor, by: tensor)),
    "gemma3_text: window": ("gemma3_text", "grouped", lambda f, p: replace(f, windows=unlimited)),
    "gemma3_text: window of one more": ("gemma3_text", "grouped", windowed(lambda i, w: w and w + 1)),
    "gemma3_text: layers with a window": ("gemma3_text", "grouped", windowed(lambda i, w: 8)),
    "gemma: embeddings": ("gemma", "grouped", said(embedding_scale=1.0)),
    "gemma: activation": ("gemma", "grouped", said(activation="silu")),
    "gemma: norms": ("gemma", "grouped", without("raised", lambda tensor, by: tensor)),
    "glm: order of rows": ("glm", "third", without("interleaved", lambda width, turning: folds.partly_turned(width, turning))),
    "glm: part that turns": ("glm", "third", lambda f, p: replace(f, fields=lambda c: pairs_gone(f.fields(c)))),
    "glm: halves of gate and up": ("glm", "grouped", without("split_rows", lambda t, joined, parts: folds.split_rows(t, joined, turned_about(parts)))),
    "glm: no bias of o": ("glm", "grouped", lambda f, p: p.setattr(folds, "zeros", ones)),
    "glm4: which norm is which": ("glm4", "grouped", without("renamed", lambda t, names: folds.renamed(t, dict(zip(names, reversed(names.values()), strict=True))))),
    "llama: yarn": ("llama", "grouped", lambda f, p: replace(f, fields=lambda c: c | kit.THETA)),
    "llama: yarn's attention factor": ("llama", "grouped", lambda f, p: replace(f, fields=lambda c: roped(c, attention_factor=1.0))),
    "llama: yarn's range": ("llama", "grouped", lambda f, p: replace(f, fields=lambda c: roped(c, beta_fast=9.0))),
}


def roped(fields, **more):
    return fields | {"rope_parameters": fields["rope_parameters"] | more}


def pairs_gone(fields):
    return fields | {"rope_parameters": {k: v for k, v in fields["rope_parameters"].items() if k != "turning_pairs"}}


def turned_about(parts):
    return dict(reversed(parts.items())) if "mlp.up_proj" in parts else parts


@pytest.mark.parametrize("control", CONTROLS)
def test_a_fold_left_out_is_noticed(tmp_path, monkeypatch, control):
    family, name, change = CONTROLS[control]
    model, src = kit.made(tmp_path / "src", family, name)
    changed = change(registry.FAMILIES[family], monkeypatch) or registry.FAMILIES[family]
    monkeypatch.setattr(registry, "FAMILIES", dict(registry.FAMILIES) | {family: changed})
    convert(src, tmp_path / "dst")
    assert kit.error(kit.backend_logits(tmp_path / "dst", IDS), sources.logits(model, IDS)) > FAULT


REFUSED = {
    "a window of a llama": ("llama", {"sliding_window": 32}, "sliding_window 32 is not a plain Llama's"),
    "layers without rotary of a llama": ("llama", {"no_rope_layers": [1, 0, 1]}, r"no_rope_layers \[1, 0, 1\] is not a plain Llama's"),
    "a factor of a llama": ("llama", {"embedding_multiplier": 12.0}, "embedding_multiplier 12.0 is not a plain Llama's"),
    "scores of a llama": ("llama", {"attention_multiplier": 0.5}, "attention_multiplier 0.5 is not a plain Llama's"),
    "a backbone of a llama": ("llama", {"backbone": {"norms": "after"}}, "backbone .* is not a plain Llama's"),
    "a factor of a mistral": ("mistral", {"logits_scaling": 8.0}, "logits_scaling 8.0 is not a plain mistral's"),
    "experts": ("qwen2", {"num_experts": 60}, "num_experts 60 is not a plain qwen2's"),
    "a cap of scores": ("qwen2", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50.0 is not a plain qwen2's"),
    "a cap of logits": ("granite", {"final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0 is not a plain granite's"),
    "quantised": ("mistral", {"quantization_config": {"quant_method": "awq"}}, r"quantization_config \(awq\) is not supported: convert the unquantised"),
    "code of its own": ("qwen2", {"auto_map": {"AutoModel": "mine.Mine"}}, "auto_map names code of the model's own.*remove auto_map"),
    "another's code": ("phi3", {"auto_map": {"AutoModel": "modeling_other.Other"}}, "auto_map names code of the model's own"),
    "windows of some layers": ("mistral", {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "full_attention"]}, "layer_types 'full_attention' does not go with sliding_window 8, which"),
    "layers without a window to slide": ("qwen2", {"layer_types": ["sliding_attention"] * 3}, "layer_types has sliding_attention, and sliding_window .* says that no layer has a window"),
    "a first layer that is none": ("qwen2", {"use_sliding_window": True, "max_window_layers": -1}, "max_window_layers -1 must be a whole number"),
    "chunks of attention": ("mistral", {"layer_types": ["chunked_attention"] * 3}, "layer_types 'chunked_attention' must be full_attention or sliding_att"),
    "another activation": ("mistral", {"hidden_act": "gelu"}, "hidden_act 'gelu' must be"),
    "a rope that is not known": ("qwen2", {"rope_parameters": {"rope_type": "mrope", "rope_theta": 1e6}}, "rope_type 'mrope' must be one of"),
    "a rope of phi3": ("phi3", {"rope_parameters": {"rope_type": "ntk"}}, "rope_type 'ntk' must be one of"),
    "a part of a mistral": ("mistral", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported: it must be 1.0"),
    "an odd part": ("phi3", {"rope_parameters": {"partial_rotary_factor": 0.6}}, "partial_rotary_factor 0.6 turns 7 of the 12 dimensions of a head: both must be even"),
    "two parts": ("phi3", {"partial_rotary_factor": 0.5, "rope_parameters": {"partial_rotary_factor": 1.0}}, "partial_rotary_factor 0.5 must equal 1.0"),
    "a factor of nothing": ("granite", {"residual_multiplier": 0}, "residual_multiplier 0 must be a positive number"),
    "factors that are too few": ("phi3", {"rope_scaling": {"type": "longrope", "short_factor": [1, 1], "long_factor": [1, 1]}, "rope_parameters": None}, "short_factor has 2 numbers, 6 pairs of a head turn"),
    "yarn's own words": ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "extrapolation": 3}}, "rope_parameters.extrapolation 3 is not known for .*'yarn'"),
    "norms that are a word": ("hyperclovax", {"use_post_norm": "yes"}, "use_post_norm 'yes' is not a plain hyperclovax's"),
    "a bias that is a word": ("ernie4_5", {"use_bias": "yes"}, "use_bias 'yes' is not a plain ernie4_5's"),
    "a rope of older files": ("qwen2", {"rope_parameters": None, "rope_scaling": {"type": "mrope", "mrope_section": [4, 1, 1]}}, "rope_scaling.type 'mrope' must be one of"),
    "a family that is not known": ("llama", {"model_type": "falcon_h1"}, "model_type 'falcon_h1' is not supported: lm2 converts models of type ernie4_5.*, smollm3; give one of these"),
    "a model of text and images": ("gemma3_text", {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}, "model_type 'gemma3' is not supported: .* text_config's alone, gemma3_text"),
    "what a fold needs": ("phi3", {"intermediate_size": None}, "intermediate_size is missing: it must be a positive whole number"),
    "what another fold needs": ("ernie4_5", {"num_attention_heads": 0}, "num_attention_heads 0 must be a positive whole number"),
    "what the norms' fold needs": ("granite", {"head_dim": 0}, "head_dim 0 must be a positive whole number"),
}  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A folder of each family, to spoil."""
    made = {}

    def folder(family):
        if family not in made:
            made[family] = kit.made(tmp_path_factory.mktemp(family) / "src", family, "grouped" if family != "granite" else "tied")[1]
        return made[family]

    return folder


@pytest.mark.parametrize("refused", REFUSED)
def test_what_is_not_understood_is_refused_by_name(tmp_path, plain, refused):
    family, fields, message = REFUSED[refused] if isinstance(refused, str) else refused
    src = tmp_path / "src"
    src.mkdir()
    for file in plain(family).iterdir():
        (src / file.name).write_bytes(file.read_bytes())
    config = json.loads((src / "config.json").read_text())
    (src / "config.json").write_text(json.dumps({k: v for k, v in (config | fields).items() if (k, v) != ("rope_parameters", None)}))
    with pytest.raises((ConvertError, ConfigError), match=f"^{src}/config.json: .*{message}"):
        convert(src, tmp_path / "dst")
    assert not (tmp_path / "dst").exists()


def test_positions_are_limited_to_what_is_exact_and_the_user_is_told(tmp_path):
    """Short factors hold up to the original length; a window as wide as that hides nothing, and is none."""
    src = kit.made(tmp_path / "src", "phi3", "long", sliding_window=32)[1]
    notes = convert(src, tmp_path / "dst")["notes"][1:]  # the first is of a tokenizer
    assert read_config(tmp_path / "dst").max_position_embeddings == 32
    assert notes == ["positions are limited to 32 of 64: up to its original_max_position_embeddings the model is computed exactly, beyond it is not"]
    assert "backbone" not in (tmp_path / "dst" / "config.json").read_text()


WINDOWS = {  # by layer, and what the user is told of them
    ("mistral", "window"): ([7, 7, 7], "3 of 3 layers see the last 7 tokens"),
    ("phi3", "window"): ([3, 3, 3], "3 of 3 layers see the last 3 tokens"),
    ("qwen2", "window"): ([None, 6, 6], "2 of 3 layers see the last 6 tokens"),
    ("qwen3", "window"): ([4, None, 4], "2 of 3 layers see the last 4 tokens"),
    ("smollm3", "window"): ([5, None, 5], "2 of 3 layers see the last 5 tokens"),
    ("olmo3", "grouped"): ([9, None, 9], "2 of 3 layers see the last 9 tokens"),
    ("exaone4", "grouped"): ([11, None, 11], "2 of 3 layers see the last 11 tokens"),
    ("gemma3_text", "grouped"): ([8, None, 8], "2 of 3 layers see the last 8 tokens"),
    ("olmo3", "alike"): ([], ""),  # as many as its positions
    ("qwen2", "grouped"): ([], ""),
}


@pytest.mark.parametrize(("family", "name"), WINDOWS)
def test_windows_are_kept_by_layer_and_the_user_is_told(tmp_path, family, name):
    windows, told = WINDOWS[family, name]
    notes = convert(kit.made(tmp_path / "src", family, name)[1], tmp_path / "dst")["notes"][1:]  # the first is of a tokenizer
    config = read_config(tmp_path / "dst")
    assert config.max_position_embeddings == 64 and config.backbone.windows == tuple(windows)
    assert notes == ([f"{told}, as the model was made; it has 64 positions"] if told else [])


@pytest.mark.parametrize(("family", "name"), [key for key, (windows, _) in WINDOWS.items() if windows])
def test_calls_of_any_size_see_the_same_windows(tmp_path, family, name):
    """A prompt longer than the windows, in pieces that end inside them, at their ends and beyond, and token by token."""
    model, src = kit.made(tmp_path / "src", family, name)
    convert(src, tmp_path / "dst")
    want = sources.logits(model, IDS)
    for cuts in ((1, 6, 7, 8, 15), range(1, IDS.shape[1])):
        assert kit.error(kit.in_pieces(tmp_path / "dst", IDS, cuts), want) < GATE


def test_a_tensor_that_a_family_does_not_have_is_refused(tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    for family, name, shape in (("qwen2", "model.layers.1.self_attn.o_proj.bias", (48,)), ("phi3", "model.layers.1.self_attn.qkv_proj.weight", (90, 48))):
        src = kit.made(tmp_path / family, family, "grouped")[1]
        file = src / "model.safetensors"
        save_file(load_file(file) | {name: torch.ones(shape)}, file)
        with pytest.raises(ConvertError, match=rf"{file}.* tensor {name} .*not of one model"):
            convert(src, tmp_path / "dst")


@pytest.mark.parametrize("factor", [8.0, 0.11])
def test_a_factor_is_not_rounded(tmp_path, factor):
    """A power of two keeps bfloat16, any other factor makes float32 of a tensor; both are the product, to the last bit."""
    import torch

    model = kit.checkpoint("granite", "tied", attention_multiplier=factor * 12**-0.5, embedding_multiplier=1.0, residual_multiplier=1.0).bfloat16()
    src = sources.save_hf(model, tmp_path / "src")
    convert(src, tmp_path / "dst")
    got, codes = sources.read_folder(tmp_path / "dst")
    name = "model.layers.0.self_attn.q_proj.weight"
    have = sources.weights(model)[name]
    times = np.float32(factor * 12**-0.5 * 12**0.5)
    assert codes[name] == ("BF16" if factor == 8.0 else "F32")
    assert np.array_equal(got[name], have * times)
    assert codes["model.embed_tokens.weight"] == "BF16" and model.dtype == torch.bfloat16


def test_dynamic_rope_is_the_default_one_up_to_the_models_positions(tmp_path):
    block = {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 4.0}
    model, src = kit.made(tmp_path / "src", "mistral", "grouped", rope_parameters=block)
    convert(src, tmp_path / "dst")
    ids = np.concatenate([IDS] * 3, axis=1)  # 60 of 64 positions
    assert kit.error(kit.backend_logits(tmp_path / "dst", ids), sources.logits(model, ids)) < GATE


def test_rows_are_cut_and_reordered_block_by_block(monkeypatch):
    """Blocks that end inside a head, and pieces that begin inside a block."""
    from lm2.models.checkpoints.source import SourceTensor, whole

    a = np.random.default_rng(1).standard_normal((24, 5)).astype(np.float32)
    tensor = SourceTensor("x", "F32", a.shape, lambda: iter(np.split(a, [5, 6, 13, 23])))
    order = folds.interleaved(8)
    assert np.array_equal(whole(folds.reordered(tensor, order)), a.reshape(3, 8, 5)[:, order].reshape(24, 5))
    for begin, end in ((0, 24), (4, 7), (6, 13), (22, 24)):
        assert np.array_equal(whole(folds.some_rows(tensor, "y", begin, end)), a[begin:end])
    assert folds.interleaved(4) == [0, 2, 1, 3] and folds.interleaved(10, 4) == [0, 2, 4, 5, 6, 1, 3, 7, 8, 9]
    assert folds.partly_turned(10, 6) == [0, 1, 2, 6, 7, 3, 4, 5, 8, 9]
    assert folds.partly_turned(6, 6) == list(range(6)) and unchanged({}, {}) == {}


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("smollm3", {"no_rope_layers": [1, 0]}, r"no_rope_layers \[1, 0\] must be a list of 3 numbers"),
        ("smollm3", {"use_sliding_window": True, "sliding_window": 8.5, "layer_types": ["sliding_attention"] * 3}, "sliding_window 8.5 must be a positive whole"),
        ("gemma3_text", {"final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0 is not a plain gemma3_text's"),
        ("gemma3_text", {"hidden_activation": "silu"}, "hidden_activation 'silu' must be 'gelu_pytorch_tanh'"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention True is not a plain gemma3_text's"),
        ("gemma3_text", {"rope_parameters": {"rope_type": "default"}}, "rope_parameters .* must have a block for full_attention"),
        ("gemma3_text", {"layer_types": ["full_attention"]}, "layer_types must be a list of 3 names"),
        ("olmo3", {"rope_parameters": None, "rope_theta": 777.0}, "rope_theta 777.0 is of all layers in transformers 4 and not of the sliding ones in 5: say it in rope_parameters"),
        ("olmo3", {"rope_parameters": {"full_attention": {"rope_type": "ntk"}}}, "rope_type 'ntk' must be one of"),
        ("gemma3_text", {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 3.0}}, "rope_scaling.type 'linear' is left out by transformers .*: write rope_scaling.rope_type"),
        ("gemma", {"hidden_act": "relu"}, "hidden_act 'relu' must be 'gelu_pytorch_tanh'"),
        ("glm", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.0}}, "partial_rotary_factor 0.0 must be a number above 0"),
        ("olmo2", {"clip_qkv": 8.0}, "clip_qkv 8.0 is not a plain olmo2's"),
        ("qwen3", {"num_experts": 128}, "num_experts 128 is not a plain qwen3's"),
        ("exaone4", {"layer_types": None, "sliding_window_pattern": "LLLG"}, "sliding_window_pattern 'LLLG' must be a positive whole number"),
        ("exaone4", {"layer_types": None, "sliding_window_pattern": 0}, "sliding_window_pattern 0 must be a positive whole number"),
        ("gemma3_text", {"sliding_window": None}, "layer_types has sliding_attention, and sliding_window None says"),
        ("exaone4", {"logit_scale": 0.5}, "logit_scale 0.5 is not a plain exaone4's"),
    ],
)
def test_other_decoders_that_are_refused(tmp_path, plain, family, fields, message):
    test_what_is_not_understood_is_refused_by_name(tmp_path, plain, (family, fields, message))


BLOCKS = [
    ({"norm": "after"}, "backbone.norm is not known: it must be one of"),
    ({"qk_norm": "all"}, "backbone.qk_norm 'all' must be one of none, head, whole"),
    ({"no_rope": [2, 1]}, r"backbone.no_rope \[2, 1\] must be ascending layers from 0 to 2"),
    ({"no_rope": [3]}, r"backbone.no_rope \[3\] must be ascending layers from 0 to 2"),
    ({"local": [1]}, "backbone.local .* and backbone.local_rope must be given together"),
    ({"local": [1], "local_rope": {"rope_type": "ntk"}}, "backbone.local_rope: rope_parameters.rope_type 'ntk'"),
    ({"embedding_scale": 0}, "backbone.embedding_scale 0 must be a positive number"),
    ({"activation": "relu"}, "backbone.activation 'relu' must be one of silu, gelu_tanh"),
    ({"activation": "gelu_tanh"}, "hidden_act 'silu' must be 'gelu_pytorch_tanh'"),
    ({"windows": 8}, "backbone.windows 8 must be a list with a number of tokens from 1 to 2147483647, or null, for each layer"),
    ({"windows": [8, None, 0]}, r"backbone.windows \[8, None, 0\] must be a list with a number of tokens"),
    ({"windows": [8, None, 8.0]}, r"backbone.windows \[8, None, 8.0\] must be a list with a number of tokens"),
    ({"windows": [8, True, None]}, r"backbone.windows \[8, True, None\] must be a list with a number of tokens"),
    ({"windows": [8, None, 1 << 31]}, r"backbone.windows \[8, None, 2147483648\] must be a list with a number of tokens"),
    ({"windows": [8, None]}, "backbone.windows has 2 entries: it must have 3, one for each layer"),
    ({"windows": [None, None, None]}, r"backbone.windows \[None, None, None\] must have a window for one layer at least: leave it out"),
    ("after", "backbone 'after' must be an object"),
]


@pytest.mark.parametrize(("block", "message"), BLOCKS)
def test_a_backbone_block_is_checked(block, message):
    d = tiny.CELLS["gated"].to_dict() | {"backbone": block}
    with pytest.raises(ConfigError, match=message):
        LM2Config.from_dict(d)


@pytest.mark.parametrize("name", tiny.BACKBONES)
def test_a_backbone_is_written_and_read_again_and_counts(name):
    """What is a Llama's is not written: configs and fingerprints of before stay. What is not is part of the fingerprint."""
    config = tiny.config(backbone=tiny.BACKBONES[name])
    assert LM2Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    llama = tiny.config()
    assert "backbone" not in llama.to_dict() and llama.function_dict() != config.function_dict()
    assert config.to_dict()["backbone"] == config.function_dict()["backbone"]


def older(family, config):
    """The same config as older files, and those on the hub, spell it."""
    new = {k: v for k, v in config.items() if k not in ("rope_parameters", "partial_rotary_factor", "layer_types", "_sliding_window_pattern", "dtype")}
    rope = config["rope_parameters"]
    if family == "gemma3_text":
        full, local = rope["full_attention"], rope["sliding_attention"]
        scaling = {"rope_type": full["rope_type"], "factor": full["factor"]}
        return new | {"rope_theta": full["rope_theta"], "rope_local_base_freq": local["rope_theta"], "rope_scaling": scaling, "sliding_window_pattern": 2}
    scaling = {k: v for k, v in rope.items() if k.endswith("_factor") and not k.startswith("partial")} | {"type": "su"}
    return new | {"rope_theta": rope["rope_theta"], "rope_scaling": scaling, "partial_rotary_factor": rope["partial_rotary_factor"]}


@pytest.mark.parametrize(("family", "name"), [("phi3", "long"), ("gemma3_text", "grouped")])
def test_older_spellings_mean_the_same(tmp_path, family, name):
    src = kit.made(tmp_path / "src", family, name)[1]
    first = convert(src, tmp_path / "a", name="m")
    config = json.loads((src / "config.json").read_text())
    (src / "config.json").write_text(json.dumps(older(family, config)))
    assert "rope_parameters" not in (src / "config.json").read_text()
    assert convert(src, tmp_path / "b", name="m")["fingerprint"] == first["fingerprint"]
    assert read_config(tmp_path / "a") == read_config(tmp_path / "b")
