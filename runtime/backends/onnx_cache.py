"""Exports of model folders that were opened with --backend onnx: made once, kept in the cache. Knows folders; builds no graph itself."""

import importlib.util
from pathlib import Path

from ...models.alone import alone
from ...models.checkpoints.progress import Event, Report
from ...models.errors import BackendError, LM2Error
from ...models.home import home
from ...models.layout import ModelFolder, open_folder
from ..backend import BackendOptions, silent
from .onnx_session import pick_provider

GRAPH = 8  # raised when the same options give another graph
PRECISION = {"float32": "fp32", "float16": "fp16"}


def exports_folder() -> Path:
    """Where exports made on the way live, one folder each."""
    return home() / "onnx"


def needed_precision(folder: ModelFolder, options: BackendOptions, kind: str | None) -> str:
    """fp32 or fp16. dtype auto: fp32 on a CPU; on CUDA the folder's own, a half as fp16. Raises BackendError for other dtypes."""
    if options.dtype == "auto":
        return "fp16" if kind == "cuda" and folder.config.dtype in ("float16", "bfloat16") else "fp32"
    if options.dtype not in PRECISION:
        raise BackendError(f"dtype {options.dtype!r} must be auto, {' or '.join(PRECISION)} with --backend onnx")
    return PRECISION[options.dtype]


def exported_folder(folder: ModelFolder, options: BackendOptions) -> ModelFolder:
    """The export of a model folder from the cache, without its memory where `options` say so; the first time it is made, which `options.report` hears of.

    Raises BackendError when the onnx package is missing, and what an export raises.
    """
    folder = folder if options.memory else folder.without_memory()
    precision = needed_precision(folder, options, pick_provider(options.device)[1])
    place = exports_folder() / f"{folder.fingerprint[:32]}-{precision}-{GRAPH}"
    if place.exists():
        try:
            return open_folder(place, exported=True)
        except LM2Error as error:
            raise BackendError(f"the export kept in the cache is damaged ({error}): remove {place} and it is made again") from None
    if importlib.util.find_spec("onnx") is None:
        raise BackendError(f"{folder.path} was not exported yet, and the onnx package is missing: pip install 'lm2[onnx]'")
    from ...export.export import export_model
    from ...export.options import Options

    place.parent.mkdir(parents=True, exist_ok=True)
    with alone(place.parent / f".{place.name}.lock"):
        if not place.exists():
            options.report(Event(f"exporting {folder.path.name} to ONNX ({precision}), once; kept in {place}", note=True))
            export_model(folder.path, place, Options(precision, memory=options.memory), options.report)
    return open_folder(place, exported=True)


def find_library(device: str, report: Report = silent) -> Path | None:
    """The operator library for a device type, for a CPU built now, once, where somebody hears of it; without it the graph's own body runs."""
    from ...export.ops.build import built, ready

    return built(cuda=True) if device == "cuda" else ready(report)
