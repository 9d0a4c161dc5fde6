"""Exports of tiny models and backends over them, for the ONNX tests."""

import mlx_kit
import numpy as np

from lm2.export.export import export_model
from lm2.export.options import Options
from lm2.runtime.backend import BackendOptions, open_backend

FORMS = {
    "default": Options(),
    "plain": Options(plain=True),
    "portable": Options(portable=True),
    "opset 23": Options(opset=23),
    "standard": Options(opset=23, plain=True, portable=True),
}


def exported(root, name, options=Options(), **fields):
    """Folders (model, export) of a random tiny model."""
    source = root / "model"
    if not source.exists():
        mlx_kit.folder(source, name, **fields)
    target = root / f"{options.precision}-{options.opset}-{options.plain}-{options.portable}"
    if not target.exists():
        export_model(source, target, options)
    return source, target


def backend(path, dtype="auto"):
    return open_backend("onnx", path, BackendOptions(device="cpu", dtype=dtype, threads=1))


def windowed(backend, state, script, window, split=None):
    """A script of window_kit through the backend's contract, in pieces of `split` (None: as large as allowed): logits (b, s, v) and the window."""
    at, chunk, s = 0, backend.config.memory.chunk, script.ids.shape[1]
    ids, out = np.asarray(script.ids), []
    w = backend.start(len(ids), state, window, script.carried)
    for stop in sorted({*script.folds, s}):
        while at < stop:
            size = min(stop - at, split or s, w.folded + chunk - at)
            logits, w = backend.extend(ids[:, at : at + size], w, all_logits=True)
            out.append(logits)
            at += size
        if stop in script.folds:
            w = backend.fold(w)
    return np.concatenate(out, axis=1), w


def rewritten(path, change):
    """Change an exported folder's model and make the record agree, as a careless tool would."""
    import json

    import onnx

    from lm2.models.exported import file_digest

    model = onnx.load(path / "model.onnx")
    change(model)
    onnx.save(model, path / "model.onnx")
    config = json.loads((path / "config.json").read_text())
    file = path / "model.onnx"
    config["onnx"]["files"]["model.onnx"] = {"bytes": file.stat().st_size, "sha256": file_digest(file)}
    (path / "config.json").write_text(json.dumps(config))


class OneMatrix:
    """The weights of a model that has one matrix."""

    path = "m/model.safetensors"

    def __init__(self, w, name="a"):
        self.w = w
        self.header = type("Header", (), {"tensors": {f"{name}.weight": type("Info", (), {"shape": w.shape})}})

    def rows(self, names):
        yield self.w

    def joint_shape(self, names):
        return self.w.shape

    def largest(self, names):
        return np.abs(self.w).max()

    def biases(self, names):
        return None
