"""A model repository for Triton Inference Server: an export, its configuration, and the operator library beside it.

Knows Triton's files and the meaning of its sequence batcher's states; the graph is export.py's business. The server owns the state: every
past_X / present_X pair is an implicit state of fixed shape that begins as docs/onnx.md says. One request is one call of one conversation
(`max_batch_size: 0`), because the positions in past_length belong to all sequences of a batch. The repository appears whole or not at all.

Axes: b batch, t positions of a call, l banks, n rows of a bank, d hidden.
"""

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from ..models.atomic import check_new_folder, new_folder, write_error
from ..models.checkpoints.progress import Event, Report, silent
from ..models.config import LM2Config
from ..models.errors import ConvertError
from ..models.exported import MODEL
from ..models.layout import open_folder
from ..models.oserrors import shown
from .export import export_model
from .ops.build import BuildError, build, suffix
from .ops.build import library as own_library
from .options import Options

CONFIG = "config.pbtxt"
VERSION = "1"
INITIAL = "initial_state"
SEQUENCES = 16  # conversations of one instance at a time; each costs the bytes of its state
IDLE_US = 600_000_000  # after ten minutes without a call a conversation is forgotten
TYPES = {TensorProto.FLOAT: "TYPE_FP32", TensorProto.FLOAT16: "TYPE_FP16", TensorProto.INT64: "TYPE_INT64"}
BYTES = {"TYPE_FP32": 4, "TYPE_FP16": 2, "TYPE_INT64": 8}
WINDOW = 2048  # positions of a window, where nobody asked for another number and the model has as many
ASKED = ("present_bank", "present_written")  # state that a client may ask for: a conversation's memory


def export_repository(
    src: Path, dst: Path, options: Options = Options(), root: str = "", report: Report = silent, sequences: int = SEQUENCES,
    measure_cost: bool | None = None,
) -> dict[str, Any]:
    """Export model folder `src` into the new model repository `dst`; the summary of `export_model` plus what the repository is.

    `root`: the path at which the server will see `dst` (Triton takes the library's path as it is); `dst` itself if empty. Without a C compiler
    the repository has no library, which `report` hears of. Windows have `options.window` positions, or WINDOW. Raises as `export_model` does.
    """
    check_new_folder(dst)
    if shown(where := root or str(dst.absolute())) != where:
        raise ConvertError(f"{shown(where)} is not UTF-8, and Triton's configuration is: choose another folder, or give --triton-root")
    config = open_folder(src).config
    if config.memory.cell == "gated" and not options.window:  # the server wants to know the shape of every state
        options = replace(options, window=min(WINDOW, config.max_position_embeddings))
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", config.name or src.name)
    with new_folder(dst) as out:
        folder = out / name
        summary = export_model(src, folder / VERSION, options, report, measure_cost=measure_cost)
        library = _library(folder, report) if summary["operators"] and not options.half else ""
        if config.memory.banks and config.memory.init == "eye":
            (folder / INITIAL).mkdir()
            (folder / INITIAL / "past_bank").write_bytes(first_bank(config).tobytes())
        graph = onnx.load(folder / VERSION / MODEL, load_external_data=False).graph
        path = f"{root.rstrip('/') or dst.absolute().as_posix()}/{name}/{library}" if library else ""
        text, size = configuration(name, graph, config, path, options.half, sequences)
        (folder / CONFIG).write_text(text, encoding="utf-8")
    window = options.window or config.memory.chunk
    triton = {"model": name, "window": window, "library": path, "sequences": sequences, "state_bytes": size}
    return summary | {"path": str(dst), "triton": triton}


def first_bank(config: LM2Config) -> np.ndarray:
    """The bank (1, l, n, d) float32 that a conversation of an `eye` model begins with."""
    m = config.memory
    return np.tile(np.eye(m.slots, config.hidden_size, dtype=np.float32), (1, m.banks, 1, 1))


def configuration(name: str, graph: onnx.GraphProto, config: LM2Config, library: str, gpu: bool, sequences: int) -> tuple[str, int]:
    """config.pbtxt for a step graph, and the bytes of one conversation's state."""
    inputs, states, size = [], [], 0
    for value in graph.input:
        kind, dims = _of(value, batch=1)
        if not value.name.startswith("past_"):
            inputs.append(_block(f'name: "{value.name}"', f"data_type: {kind}", f"dims: {dims}"))
            continue
        eye = value.name == "past_bank" and config.memory.init == "eye"
        data = 'name: "eye", data_file: "past_bank"' if eye else 'name: "zeros", zero_data: true'
        states.append(
            _block(
                f'input_name: "{value.name}"',
                f'output_name: "{value.name.replace("past_", "present_", 1)}"',
                f"data_type: {kind}",
                f"dims: {dims}",
                "use_same_buffer_for_input_output: true",
                f"initial_state {{ {data}, data_type: {kind}, dims: {dims} }}",
            )
        )
        size += BYTES[kind] * int(np.prod(dims))
    outputs = [
        _block(f'name: "{value.name}"', f"data_type: {_of(value)[0]}", f"dims: {_of(value)[1]}")
        for value in graph.output
        if value.name == "logits" or value.name in ASKED
    ]
    lines = [
        "# Written by `lm2 export --triton`. What a client sends: docs/onnx.md of LM2.",
        f'name: "{name}"',
        'backend: "onnxruntime"',
        "max_batch_size: 0",
        *_list("input", inputs),
        *_list("output", outputs),
        "sequence_batching {",
        f"  max_sequence_idle_microseconds: {IDLE_US}",
        f"  # One conversation's state is {size} bytes.",
        f"  oldest {{ max_candidate_sequences: {sequences} }}",
        *(f"  {line}" for line in _list("state", states)),
        "}",
        f"instance_group [ {{ count: 1, kind: {'KIND_GPU' if gpu else 'KIND_CPU'} }} ]",
    ]
    if library:
        lines.append(f'model_operations {{ op_library_filename: "{_quoted(library)}" }}')
    return "\n".join(lines) + "\n", size


def _library(folder: Path, report: Report) -> str:
    """The operator library's file name in `folder`: a copy of the user's own, or built now by the compiler that CC names, which may be another machine's;
    nothing, with a note, where it cannot be built."""
    name = f"lm2_ops{suffix()}"
    try:
        if os.environ.get("CC", "").strip():
            build(folder / name)
        else:
            own = own_library()
            try:
                shutil.copyfile(own, folder / name)
            except OSError as error:
                raise write_error(folder / name, error, "nothing was written") from error
    except BuildError as error:
        report(Event(f"no operator library in the repository ({error}); the model runs without it", note=True))
        return ""
    return name


def _of(value: onnx.ValueInfoProto, batch: int = -1) -> tuple[str, list[int]]:
    """Triton's type and dims of an input or output: -1 for what varies, `batch` for the batch axis."""
    tensor = value.type.tensor_type
    dims = [batch if d.dim_param == "batch" else -1 if d.dim_param else d.dim_value for d in tensor.shape.dim]
    return TYPES[tensor.elem_type], dims


def _block(*fields: str) -> str:
    return "{ " + ", ".join(fields) + " }"


def _list(name: str, blocks: list[str]) -> list[str]:
    return [f"{name} [", *(f"  {block}{',' if i < len(blocks) - 1 else ''}" for i, block in enumerate(blocks)), "]"]


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
