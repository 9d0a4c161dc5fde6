"""Exports of tiny models and backends over them, for the ONNX tests."""

import mlx_kit

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
