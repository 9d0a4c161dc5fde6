"""Families of decoders in ONNX: what transformers computes, memory never written, and the PyTorch reference's numbers with one that is."""

import family_kit as kit
import numpy as np
import onnx_kit
import pytest
import sources
import tiny
from compare import nmse, relative_l2

from lm2.export.attention import WindowAttention
from lm2.export.export import export_model
from lm2.export.options import Options
from lm2.models.checkpoints.convert import convert
from lm2.runtime.parity.measures import kl_divergence

pytest.importorskip("onnxruntime")
CHANGED = ("qwen3", "smollm3", "olmo2", "gemma3_text")  # graphs that are not a Llama's, each in its own way
CASES = [(family, next(iter(shapes)), "default") for family, (_, shapes) in kit.FAMILIES.items()]
CASES += [("phi3", "part", "default"), ("phi3", "long", "default"), ("qwen3", "own width", "default"), ("qwen2", "window", "default")]
CASES += [("mistral", "window", form) for form in onnx_kit.FORMS]  # no layer without a window
CASES += [(family, next(iter(kit.FAMILIES[family][1])), form) for family in CHANGED for form in ("plain", "portable")]


@pytest.mark.parametrize(("family", "name", "form"), CASES)
def test_a_memory_never_written_computes_what_transformers_does(tmp_path, family, name, form):
    model, src = kit.made(tmp_path / "src", family, name)
    convert(src, tmp_path / "dst")
    export_model(tmp_path / "dst", tmp_path / "onnx", onnx_kit.FORMS[form])
    want = sources.logits(model, kit.IDS)
    assert kit.error(kit.backend_logits(tmp_path / "onnx", kit.IDS, "onnx"), want) < kit.GATE
    if name == "window" or family in ("gemma3_text", "olmo3", "exaone4"):
        for cuts in ((1, 6, 7, 8, 15), range(1, kit.IDS.shape[1])):
            assert kit.error(kit.in_pieces(tmp_path / "onnx", kit.IDS, cuts, "onnx"), want) < kit.GATE


REST = [(family, name, form) for family, name in kit.SHAPES for form in ("default", "plain", "portable") if (family, name, form) not in CASES]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name", "form"), REST)
def test_every_checkpoint_in_every_form(tmp_path, family, name, form):
    test_a_memory_never_written_computes_what_transformers_does(tmp_path, family, name, form)


SHARES = {"int8": 0.003, "int4": 0.2}  # of the KL divergence of the float32 export's own predictions from those one place on


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), [(family, next(iter(shapes))) for family, (_, shapes) in kit.FAMILIES.items()])
def test_every_family_rounded_is_near_its_own_float32(tmp_path, family, name):
    """By KL divergence, nats a token, over prompts longer than any window: measured int8 6.8e-7 to 1.3e-3 (at most 0.1% of that of one place on), int4 1.1e-5
    to 0.14 (at most 10.4%). The control: a checkpoint of other weights."""
    convert(kit.made(tmp_path / "src", family, name)[1], tmp_path / "dst")
    ids = np.random.default_rng(6).integers(0, 96, (8, 21))
    found = {}
    for precision in ("fp32", "int8", "int4"):
        export_model(tmp_path / "dst", tmp_path / precision, Options(precision), measure_cost=False)
        found[precision] = kit.backend_logits(tmp_path / precision, ids, "onnx")
    want = found["fp32"]
    one_on = float(kl_divergence(want[:, 1:], want[:, :-1]).mean())
    got = {precision: float(kl_divergence(want, found[precision]).mean()) for precision in SHARES}
    print(f"{family} {name}: " + ", ".join(f"{precision} {value:.2g}, {value / one_on:.2g} of {one_on:.2g}" for precision, value in got.items()))
    assert all(got[precision] <= share * one_on for precision, share in SHARES.items()), got
    assert kl_divergence(want, sources.logits(kit.checkpoint(family, name, seed=4), ids)).mean() > 2 * SHARES["int4"] * one_on


def window(backend, ids):
    """Two chunks, the second in steps of one token: its logits, and the bank after it."""
    logits, chunk = onnx_kit.mlx_kit.run(backend, ids)
    state = backend.commit(chunk)
    logits, chunk = onnx_kit.mlx_kit.run(backend, ids, state, range(1, 6))
    return logits, backend.to_host(backend.commit(chunk))


WIDTHS = {"heads of 8": {}, "heads of 16": dict(head_dim=16), "heads of 6": dict(head_dim=6)}  # the operator turns heads, or attends only, or neither


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", tiny.BACKBONES)
def test_a_written_memory_is_the_references(tmp_path, name, width):
    source, target = onnx_kit.exported(tmp_path, "gated", rows=2, backbone=tiny.BACKBONES[name], **WIDTHS[width])
    ids = np.random.default_rng(4).integers(0, 61, (2, 16))
    (want, bank), (got, got_bank) = window(onnx_kit.mlx_kit.torch(source), ids), window(onnx_kit.backend(target), ids)
    assert relative_l2(got, want) <= 1e-5 and nmse(got_bank, bank) <= 1e-10


@pytest.mark.parametrize("form", ["plain", "portable"])
@pytest.mark.parametrize("name", tiny.BACKBONES)
def test_every_form_is_the_references(tmp_path, name, form):
    source, target = onnx_kit.exported(tmp_path, "gated", onnx_kit.FORMS[form], rows=2, backbone=tiny.BACKBONES[name])
    ids = np.random.default_rng(4).integers(0, 61, (2, 16))
    (want, bank), (got, got_bank) = window(onnx_kit.mlx_kit.torch(source), ids), window(onnx_kit.backend(target), ids)
    assert relative_l2(got, want) <= 1e-5 and nmse(got_bank, bank) <= 1e-10


@pytest.mark.parametrize(("precision", "gate"), [("fp16", 2e-2), ("int8", 0.1)])
@pytest.mark.parametrize("name", tiny.BACKBONES)
def test_lower_precisions(tmp_path, name, precision, gate):
    source, target = onnx_kit.exported(tmp_path, "gated", Options(precision=precision), rows=2, backbone=tiny.BACKBONES[name])
    ids = np.random.default_rng(4).integers(0, 61, (2, 16))
    want, got = window(onnx_kit.mlx_kit.torch(source), ids)[0], window(onnx_kit.backend(target), ids)[0]
    assert relative_l2(got, want) <= gate


@pytest.mark.parametrize(("precision", "gate"), [("int8", 2e-3), ("int4", 0.14)])
def test_windows_of_a_quantised_model_are_those_of_its_float32(tmp_path, precision, gate, monkeypatch):
    """By KL divergence, nats a token: measured 5.6e-4 and 0.070; with a window of one more 0.24 and 0.27."""

    def logits(options, root):
        _, target = onnx_kit.exported(root, "gated", options, rows=2, backbone=tiny.BACKBONES["windows"])
        return onnx_kit.mlx_kit.run(onnx_kit.backend(target), np.random.default_rng(4).integers(0, 61, (8, 16)))[0]

    want = logits(Options(), tmp_path / "right")
    assert kl_divergence(want, logits(Options(precision), tmp_path / "right")).mean() <= gate
    monkeypatch.setattr(WindowAttention, "mask", lambda self, g, reached, column, w: MASK(self, g, reached, column, w + 1))
    assert kl_divergence(want, logits(Options(precision), tmp_path / "wrong")).mean() > 1.5 * gate


CHUNKED, CACHED, MASK = WindowAttention.chunked, WindowAttention.cached, WindowAttention.mask


def turned_by(patch, tables):
    """Every layer turns by `tables(attention)`."""
    patch.setattr(WindowAttention, "chunked", lambda self, g, qkv, past, own, heads: CHUNKED(self, g, qkv, past, tables(self), heads))


FAULTS = {
    "layers that turn": ("norms of heads", lambda step, patch: turned_by(patch, lambda self: self.no_turn)),
    "norms of q and k": ("norms of heads", lambda step, patch: patch.setattr(step.Step, "_normed_heads", lambda self, x, heads, weight: x)),
    "norms of q and k as a whole": ("norms after", lambda step, patch: patch.setattr(step.Step, "_normed_heads", lambda self, x, heads, weight: x)),
    "rope of some layers": ("norms around", lambda step, patch: turned_by(patch, lambda self: self.tables[0])),
    "window": ("windows", lambda step, patch: patch.setattr(WindowAttention, "cached", lambda self, *given: CACHED(self, *given[:8]))),
    "window of one more": ("windows", lambda step, patch: patch.setattr(WindowAttention, "mask", lambda self, g, reached, column, w: MASK(self, g, reached, column, w + 1))),
    "window of one less": ("windows", lambda step, patch: patch.setattr(WindowAttention, "mask", lambda self, g, reached, column, w: MASK(self, g, reached, column, w - 1))),
    "scale of embeddings": ("norms around", lambda step, patch: patch.setattr(step.Step, "_scaled", lambda self, x: x)),
    "norms after": ("norms around", lambda step, patch: patch.setattr(step.Step, "_output_normed", lambda self, a, part: a)),
    "norms before": ("norms around", lambda step, patch: patch.setattr(step.Step, "_plain", lambda self, weight: weight != "model.norm.weight")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_part_left_out_is_noticed(tmp_path, fault, monkeypatch):
    from lm2.export import step

    name, spoil = FAULTS[fault]
    spoil(step, monkeypatch)
    source, target = onnx_kit.exported(tmp_path, "gated", rows=2, backbone=tiny.BACKBONES[name])
    ids = np.random.default_rng(4).integers(0, 61, (2, 16))
    want, got = onnx_kit.mlx_kit.run(onnx_kit.mlx_kit.torch(source), ids)[0], onnx_kit.mlx_kit.run(onnx_kit.backend(target), ids)[0]
    assert relative_l2(got, want) > kit.FAULT


@pytest.mark.parametrize("name", ["norms of heads", "norms around"])
def test_the_backbone_that_decides_roundings_is_the_references(tmp_path, name):
    """What attention and MLP of each layer are fed, with its memory empty."""
    import torch

    from lm2.export import backbone as plain
    from lm2.export.weights import Weights
    from lm2.models.layout import open_folder
    from lm2.models.weights import load_model

    folder = open_folder(onnx_kit.mlx_kit.folder(tmp_path / "m", "gated", backbone=tiny.BACKBONES[name]))
    model, met = load_model(folder), []
    ids = np.random.default_rng(plain.SEED).integers(0, 61, 16)
    for block in model.blocks:
        for norm in (block.input_layernorm, block.post_attention_layernorm):
            norm.register_forward_hook(lambda _module, _args, out: met.append(out[0].detach().numpy()))
    with torch.no_grad():
        model.extend(torch.as_tensor(ids)[None], model.start(model.initial_bank()), model.tables(), all_logits=True)
    with open(folder.weights, "rb") as f:
        got = list(plain.normed_inputs(folder.config, Weights(folder, f)))
    assert len(got) == len(met) == 6
    if name == "norms of heads":
        for a, b in zip(got, met, strict=True):
            assert relative_l2(a, b) < 1e-5
    else:
        assert relative_l2(got[1], met[1]) > 1e-3  # norms after attention are not its to know: such models are left as they are
