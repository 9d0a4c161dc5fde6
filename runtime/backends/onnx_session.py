"""Opening an exported model in ONNX Runtime: device, threads, the operator library, and one clear line for what goes wrong.

Knows ONNX Runtime's sessions; nothing of windows. Never loads a library from a model's folder.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime as ort

from ...models import exported
from ...models.errors import BackendError, ModelFileError
from ...models.exported import DATA, MODEL
from ...models.layout import ModelFolder
from ...models.oserrors import shown, utf8_path
from .onnx_buffers import TYPES, first_line

PREFIX = "lm2."
SIDE_FILES = "session.model_external_initializers_file_folder_path"  # a graph in memory has no folder of its own
QUIET = 4  # errors come as exceptions; ONNX Runtime's own log says the same in ten lines


def pick_provider(device: str) -> tuple[str, str, int]:
    """`auto|cpu|cuda|cuda:N|gpu` -> (provider, device type, device number). Raises BackendError for one that is not there; no silent fallback."""
    available = ort.get_available_providers()
    cuda = "CUDAExecutionProvider"
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda", "gpu") or (index and not (kind == "cuda" and index.isdigit())):
        raise BackendError(f"device {device!r} must be auto, cpu, cuda or cuda:N")
    if kind == "cpu" or (kind == "auto" and cuda not in available):
        return "CPUExecutionProvider", "cpu", 0
    if cuda not in available:
        have = ", ".join(available)
        raise BackendError(f"device {device!r} is not there: this ONNX Runtime {ort.__version__} has {have}: pip install 'lm2[onnx-gpu]'")
    return cuda, "cuda", int(index or 0)


def open_session(
    folder: ModelFolder, device: str, threads: int, find_library: Callable[[str], Path | None]
) -> tuple[ort.InferenceSession, str, int]:
    """The session, its device type and number. `find_library`: device type -> library of the custom operator to register, or None.

    Raises BackendError or ModelFileError, one line each.
    """
    provider, kind, index = pick_provider(device)
    options = ort.SessionOptions()
    options.log_severity_level = QUIET
    options.enable_mem_pattern = False  # one pattern would be kept for each number of tokens ever fed
    if threads:
        options.intra_op_num_threads = threads
    library = find_library(kind)
    if library is not None:
        try:
            options.register_custom_ops_library(str(utf8_path(library.parent) / library.name))
        except Exception as error:
            raise BackendError(
                f"{library} does not load into ONNX Runtime {ort.__version__} ({first_line(error)}): build it again with `lm2 build-ops`"
            ) from None
    file = folder.path / MODEL
    graph, side = source(folder)
    if side is not None:
        options.add_session_config_entry(SIDE_FILES, side)
    settings: list[Any] = [(provider, {"device_id": index})] if kind == "cuda" else [provider]
    try:
        session = ort.InferenceSession(graph, options, providers=settings)
    except Exception as error:
        export = folder.export
        opset = f", opset {export.opset}" if export else ""
        raise ModelFileError(
            f"{file} does not open in ONNX Runtime {ort.__version__} ({first_line(error)}{opset}): export it again, with --opset 23 for an older runtime"
        ) from None
    if session.get_providers()[0] != provider:
        raise BackendError(
            f"device {device!r}: ONNX Runtime could not start {provider} and would have used the CPU: install its CUDA libraries, or use --device cpu"
        )
    check_metadata(folder, session)
    return session, kind, index


def source(folder: ModelFolder) -> tuple[str | bytes, str | None]:
    """What to open: the graph's path, or its bytes where ONNX Runtime would not take that, with the folder that holds its data.

    ONNX Runtime takes no path that is not UTF-8 and no data that is a link, or has a second hard link (it could be of another owner's). A link to
    a file of the data's own name is followed here. Raises ModelFileError for one that cannot be.
    """
    path = folder.path
    odd = shown(path.absolute()) != str(path.absolute())
    if folder.export is None or DATA not in folder.export.files:
        return ((path / MODEL).read_bytes() if odd else str(path / MODEL)), None
    if not odd and not (path / MODEL).is_symlink() and not (path / DATA).is_symlink() and (path / DATA).stat().st_nlink == 1:
        return str(path / MODEL), None
    return (path / MODEL).read_bytes(), side_folder(path)


def side_folder(path: Path) -> str:
    """The folder that ONNX Runtime can read the data of `path`'s graph from, links followed. Raises ModelFileError."""
    data = Path(os.path.realpath(path / DATA))
    links = data.stat().st_nlink if data.exists() else 1
    if data.name != DATA or links > 1:
        what = f"is a link to {shown(data)}" if (path / DATA).is_symlink() else f"is one file under {links} names (hard links)"
        raise ModelFileError(
            f"{path / DATA} {what}, which ONNX Runtime does not read: copy the folder with what its links point to (cp -rL {path} COPY) and open the copy"
        )
    return str(utf8_path(data.parent))


def is_unpacked(export: exported.Export, session: ort.InferenceSession) -> bool:
    """Whether the graph multiplies by a version of QLinear that no library has any more."""
    earlier = session.get_modelmeta().custom_metadata_map[f"{PREFIX}format"] == str(exported.UNPACKED)
    return earlier and export.precision in ("int8", "int4") and not (export.plain or export.portable)


def check_metadata(folder: ModelFolder, session: ort.InferenceSession) -> None:
    """Refuse a graph of another model than config.json's. Raises ModelFileError naming both values."""
    meta = session.get_modelmeta().custom_metadata_map
    file = folder.path / MODEL
    try:
        state, config = json.loads(meta[f"{PREFIX}state"]), json.loads(meta[f"{PREFIX}config"])
        trace = json.loads(meta.get(f"{PREFIX}trace", "{}"))
        if not isinstance(config, dict):
            raise ValueError
    except (KeyError, ValueError, RecursionError):
        raise ModelFileError(f"{file} is not an LM2 export: make one with `lm2 export`") from None
    if meta.get(f"{PREFIX}fingerprint") != folder.fingerprint:
        own = str(meta.get(f"{PREFIX}fingerprint"))[:12]
        raise ModelFileError(
            f"{file} was exported from model {own}..., config.json is of {folder.fingerprint[:12]}...: the files are not of one export"
        )
    mine = folder.config.to_dict()
    for key in sorted(set(config) & set(mine) - {"name"}):
        if _decisive(key, config[key]) != _decisive(key, mine[key]):
            raise ModelFileError(
                f"{file} was exported with {key} {config[key]!r}, config.json says {mine[key]!r}: the files are not of one export"
            )
    own = meta.get(f"{PREFIX}format", "")
    if own not in map(str, exported.READABLE):
        raise ModelFileError(f"{file} has {PREFIX}format {own!r}, which {exported.other_format(int(own) if own.isdecimal() else 0)}")
    inputs, outputs = {i.name: i for i in session.get_inputs()}, {o.name for o in session.get_outputs()}
    whole = isinstance(state, dict) and all(k in inputs and isinstance(v, str) and v in outputs for k, v in state.items())
    m, layers = folder.config.memory, range(folder.config.num_hidden_layers)
    exact = m.cell == "released" and m.gate_pool == "chunk"
    needed = {"past_length"} | (set() if exact else {f"past_{part}.{i}" for part in ("key", "value") for i in layers})
    if not whole or not isinstance(trace, dict) or not needed <= set(state):
        raise ModelFileError(f"{file} does not have the state it declares: export the model again")
    for name in state:
        kind, sizes = inputs[name].type, list(inputs[name].shape[1:])
        if kind not in TYPES or not all(n == "window" or (isinstance(n, int) and n >= 0) for n in sizes):
            raise ModelFileError(f"{file}: state {name} is {kind} of {sizes} after the batch, which no export has: export the model again")


def _decisive(key: str, value: Any) -> Any:
    """A config's value without what says only how sessions use the model."""
    return {k: v for k, v in value.items() if k != "window"} if key == "memory" and isinstance(value, dict) else value
