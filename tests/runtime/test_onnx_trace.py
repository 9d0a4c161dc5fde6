"""`lm2 parity --explain` with an ONNX export: every layer agrees with the reference, and an export that is wrong in one place is named there."""

import importlib.util

import numpy as np
import onnx_kit
import parity_kit
import pytest
import tiny
from compare import assert_close

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from lm2.export.export import export_model
from lm2.export.options import Options
from lm2.runtime.parity.run import Settings, compare

SETTINGS = Settings(chunks=3, greedy=0, explain=True)


def pair(root, cell, options=Options()):
    """torch and an export of the same tiny model, compared."""
    from lm2.runtime.loading import load
    from lm2.runtime.parity.sides import Side, same_model

    source = root / "m"
    if not source.exists():
        parity_kit.folder(source, cell)
    target = root / f"x{sum(1 for _ in root.iterdir())}"
    export_model(source, target, options)
    reference = Side("torch", load(source, "torch", "cpu", "float32", 1))
    return compare(reference, same_model(reference, load(target, "onnx", "cpu", "auto", 1), "onnx"), SETTINGS)


@pytest.mark.parametrize("form", ["default", "standard"])
@pytest.mark.parametrize("cell", list(tiny.CELLS))
def test_every_tensor_of_every_layer_agrees(tmp_path, cell, form):
    found = pair(tmp_path, cell, onnx_kit.FORMS[form])
    assert found.passed and found.explanation.traced and found.explanation.first is None, found.explanation.sentence
    names = [d.name for d in found.explanation.tensors if d.chunk == 0]
    config = tiny.CELLS[cell]
    parts = ("read", "add", "rows") if config.memory.cell == "gated" else ("rows",)
    for i in range(config.num_hidden_layers):
        assert {f"layers.{i}.attention", f"layers.{i}.output"} <= set(names)
        assert all((f"layers.{i}.memory.{part}" in names) == (i in config.memory.layers) for part in parts)
    assert {"embedding", "norm", "logits"} <= set(names)


def swapped(graph, i, f, z, old):
    from lm2.export.memory import plain_update

    return plain_update(graph, f, i, z, old)


def no_output_gate(self, g, x, a, keys, values, layer, looks):
    """`gated` of export/memory.py whose reading joins whole."""
    _, write = RIGHT["gated"](self, g, x, a, keys, values, layer, looks)
    read = self.seen[f"layers.{layer}.memory.add"] = self.seen[f"layers.{layer}.memory.read"]
    return g.op("Add", a, read), write


def wrong_tables(g, rope, of, head_dim, positions, dtype, stored=False):
    from lm2.models.config import RopeConfig

    return RIGHT["rope"](g, RopeConfig(10000.0), of, head_dim, positions, dtype, stored)


RIGHT = {}


@pytest.mark.parametrize(
    ("fault", "cell", "chunk", "name"),
    [
        ("gates", "gated", 0, "layers.0.memory.rows"),
        ("gates", "released-causal", 0, "layers.0.memory.rows"),
        ("gates", "released-chunk", 0, "layers.0.memory.rows"),
        ("output gate", "gated-eye", 0, "layers.0.memory.add"),
        ("output gate", "gated", 1, "layers.0.memory.add"),
        ("theta", "gated", 0, "layers.0.attention"),
        ("bank", "gated-4T", 1, "layers.0.memory.read"),
    ],
)
def test_a_wrong_export_fails_and_is_explained(tmp_path, monkeypatch, fault, cell, chunk, name):
    """Negative controls: the first tensor named is the one that the fault is in."""
    from lm2.export import attention, memory

    RIGHT.update(gated=memory.MemoryLayers.gated, rope=attention.rotary_tables)
    if fault == "gates":
        monkeypatch.setattr("lm2.export.export.plain_update", swapped)
    elif fault == "output gate":
        monkeypatch.setattr(memory.MemoryLayers, "gated", no_output_gate)
    elif fault == "theta":
        monkeypatch.setattr(attention, "rotary_tables", wrong_tables)
    else:  # what is read is the bank's negative
        right = memory.MemoryLayers.keys_values
        monkeypatch.setattr(memory.MemoryLayers, "keys_values", lambda self, g, bank, layer, told="": right(self, g, g.op("Neg", bank), layer, told))
    found = pair(tmp_path, cell, Options(plain=True))
    first = found.explanation.first
    assert not found.passed and (first.chunk, first.name) == (chunk, name), found.explanation.sentence
    assert f"chunk {chunk + 1}, {first.words}" in found.explanation.sentence


def test_lower_precisions_and_side_files_are_traced(tmp_path):
    """Quantised: tensors, larger differences, the quantised gate. Weights in a side file are found."""
    source = parity_kit.folder(tmp_path / "m", "gated")
    ids, plain = np.arange(9), tmp_path / "plain"
    export_model(source, plain)
    export_model(source, tmp_path / "side", inline_max=1)
    export_model(source, tmp_path / "half", Options("fp16"))
    whole, side, half = (onnx_kit.backend(tmp_path / n) for n in ("plain", "side", "half"))
    state = whole.commit(whole.extend(ids, whole.start())[1])
    want, got = whole.trace(ids, state), dict(side.trace(ids, state))
    assert [n for n, _ in want] == list(got)
    for name, value in want:
        assert_close(name, got[name], value, 1e-6)
    logits, _ = whole.extend(ids, whole.start(1, state), all_logits=True)
    assert_close("logits", got["logits"], logits, 2e-5)
    assert all(value.dtype == np.float32 for _, value in half.trace(ids, state))


def test_files_without_the_record_cannot_be_traced(tmp_path, monkeypatch):
    """Exports of older versions, and machines without the onnx package: compared by logits and banks, no error."""
    source = parity_kit.folder(tmp_path / "m")
    export_model(source, tmp_path / "x")
    monkeypatch.setattr("lm2.runtime.backends.onnx_backend.traced_values", lambda metadata: {})
    assert not hasattr(onnx_kit.backend(tmp_path / "x"), "trace")
    monkeypatch.undo()
    assert hasattr(onnx_kit.backend(tmp_path / "x"), "trace")
    right = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "onnx" else right(name, *rest))
    assert not hasattr(onnx_kit.backend(tmp_path / "x"), "trace")
