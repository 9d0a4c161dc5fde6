"""The onnx backend: an exported model in ONNX Runtime behind the runtime's contract, on CPU or CUDA. Needs neither torch nor onnx.

Knows ONNX Runtime and the names of docs/onnx.md. A model folder that was not exported yet is exported once, into the cache. Keeps the session,
no conversation; a chunk owns its buffers.
"""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort

from ...models.errors import BackendError
from ...models.layout import ModelFolder, open_folder
from ..backend import BackendOptions, Description, MemoryState
from .onnx_buffers import TYPES, Buffers
from .onnx_session import PREFIX, open_session
from .onnx_trace import run_traced, traced_values


class OnnxChunk(NamedTuple):
    """A chunk in progress. bank (l, b, n, d) float32 as it stood at the start; buffers hold everything inside the chunk.

    Buffers are written in place after `length` only, so an older chunk stays good for rewinding until something else is fed after it.
    """

    bank: np.ndarray
    chunks: int
    length: int
    buffers: Buffers


class OnnxBackend:
    """Runs an exported model. Deterministic for a given file, device, thread count and ONNX Runtime version."""

    def __init__(self, folder: ModelFolder, session: ort.InferenceSession, device: str, index: int):
        assert folder.export is not None
        self.config, self.export, self.session = folder.config, folder.export, session
        self.device, self.index = device, index
        m = self.config.memory
        self._exact = m.cell == "released" and m.gate_pool == "chunk"
        self._one_by_one = self.export.attention == "GroupQueryAttention"  # it takes many tokens after others for one sequence only
        metadata = session.get_modelmeta().custom_metadata_map
        state = json.loads(metadata[f"{PREFIX}state"])
        self._state = {past: present for past, present in state.items() if past not in ("past_length", "past_chunks")}
        self._plan = {i.name: (TYPES[i.type], tuple(i.shape[1:])) for i in session.get_inputs() if i.name in self._state}
        self._path, self._traced = folder.path, traced_values(metadata)
        if self._traced and importlib.util.find_spec("onnx") is not None:
            self.trace = self._trace

    def start(self, batch: int = 1, state: MemoryState | None = None) -> OnnxChunk:
        state = MemoryState(self._initial_bank(batch), 0) if state is None else state
        return OnnxChunk(
            state.bank, state.chunks, 0, Buffers(self.session, self.device, self.index, self._state, self._begun(batch, state))
        )

    def _begun(self, batch: int, state: MemoryState) -> dict[str, np.ndarray]:
        """Every state array of a chunk that begins from `state`, batch first. Raises BackendError for a state of another shape."""
        if tuple(state.bank.shape) != self.config.bank_shape(batch):
            raise BackendError(
                f"a memory of shape {list(state.bank.shape)} does not fit: this model's is {list(self.config.bank_shape(batch))}"
            )
        arrays = {}
        for name, (kind, shape) in self._plan.items():
            if name == "past_bank":
                arrays[name] = np.ascontiguousarray(state.bank.swapaxes(0, 1))  # (b, l, n, d), read only; a view for one sequence or bank
            else:
                arrays[name] = np.zeros((batch, *shape), kind)
        return arrays

    def _trace(self, tokens: Sequence[int] | np.ndarray, state: MemoryState) -> list[tuple[str, np.ndarray]]:
        """What each layer computed for a new chunk of `tokens` (t,) or (b, t): names of models/trace.py and float32 arrays. Opens the model again."""
        ids = np.atleast_2d(np.array(tokens, dtype=np.int64))  # (b, t)
        numbers = {"past_length": 0, "past_chunks": state.chunks, "new_chunk": 1, "logits_from": 0}
        feeds = self._begun(len(ids), state) | {"input_ids": ids} | {name: np.array([n], np.int64) for name, n in numbers.items()}
        made = run_traced(self._path, self.session, feeds, self._traced)
        if self.config.memory.cell != "gated":
            return made
        _, chunk = self.extend(ids, self.start(len(ids), state))  # rows are made when a chunk ends: after what was read for them
        first = self._first_row(state.chunks)
        rows = self.commit(chunk).bank[:, :, first : first + ids.shape[1]]  # (l, b, t, d)
        out = []
        for name, value in made:
            out.append((name, value))
            layer, _, part = name.removeprefix("layers.").partition(".")
            if part == "memory.add":
                out.append((f"layers.{layer}.memory.rows", rows[self.config.memory.layers.index(int(layer))]))
        return out

    def extend(self, tokens: Sequence[int] | np.ndarray, chunk: OnnxChunk, all_logits: bool = False) -> tuple[np.ndarray, OnnxChunk]:
        ids = np.array(tokens, dtype=np.int64)
        ids = ids[None] if ids.ndim == 1 else ids  # (b, t)
        b, t = ids.shape
        past, end = chunk.length, chunk.length + t
        if t == 0:
            raise BackendError("extend needs at least one token")
        if ids.min() < 0 or ids.max() >= self.config.vocab_size:
            raise BackendError(f"token ids must lie from 0 to {self.config.vocab_size - 1}, got {ids.min()} to {ids.max()}")
        if end > self.config.memory.chunk:
            raise BackendError(f"{past} + {t} tokens do not fit in a chunk of {self.config.memory.chunk}: commit first")
        first = 0 if all_logits else -1
        args = (past, chunk.chunks, past == 0, first, self.config.vocab_size)
        if self._one_by_one and b > 1 and t > 1 and past:
            parts = [chunk.buffers.run(ids[s : s + 1], *args, sequence=s) for s in range(b)]
            logits = np.concatenate(parts)
        else:
            logits = chunk.buffers.run(ids, *args)  # (b, t or 1, v)
        chunk.buffers.rows_of = end
        return (logits if all_logits else logits[:, 0]), chunk._replace(length=end)

    def rewind(self, chunk: OnnxChunk, length: int) -> OnnxChunk:
        if not 0 <= length <= chunk.length:
            raise BackendError(f"cannot rewind a chunk of {chunk.length} tokens to {length}")
        return chunk._replace(length=length)

    def commit(self, chunk: OnnxChunk) -> MemoryState:
        length, m = chunk.length, self.config.memory
        if length == 0:
            return MemoryState(chunk.bank, chunk.chunks)
        buffers = chunk.buffers
        if self._exact and buffers.rows_of != length:  # its rows depend on every token of the chunk
            tokens = np.ascontiguousarray(buffers.tensors["past_tokens"].numpy()[:, :length])
            buffers.run(tokens, 0, chunk.chunks, True, -1, self.config.vocab_size)
            buffers.rows_of = length
        if m.cell == "gated" and m.banks:
            bank = buffers.bank_after(length, chunk.chunks, self.config.vocab_size)  # (b, l, n, d)
            return MemoryState(np.ascontiguousarray(bank.swapaxes(0, 1)), chunk.chunks + 1)
        bank = chunk.bank.copy()
        if m.banks:
            first = self._first_row(chunk.chunks)
            rows = buffers.tensors["past_rows"].numpy()[:, :, :length]  # (b, l, s, d)
            bank[:, :, first : first + length] = rows.swapaxes(0, 1)
        return MemoryState(bank, chunk.chunks + 1)

    def _first_row(self, chunks: int) -> int:
        """The bank row that position 0 writes in the chunk after `chunks` committed ones."""
        m = self.config.memory
        return chunks % (m.slots // m.chunk) * m.chunk

    def to_host(self, state: MemoryState) -> np.ndarray:
        return np.array(state.bank, dtype="<f4")  # (l, b, n, d)

    def from_host(self, bank: np.ndarray, chunks: int) -> MemoryState:
        if bank.ndim != 4 or tuple(bank.shape) != self.config.bank_shape(bank.shape[1]):
            raise BackendError(f"a memory of shape {list(bank.shape)} does not fit: this model's is {list(self.config.bank_shape())}")
        return MemoryState(np.array(bank, dtype=np.float32, order="C"), chunks)  # (l, b, n, d)

    def describe(self) -> Description:
        inside = sum(np.dtype(kind).itemsize * int(np.prod(shape)) for name, (kind, shape) in self._plan.items() if name != "past_bank")
        bits = {"int8": "8-bit", "int4": "4-bit"}.get(self.export.precision)
        return Description(
            "onnx",
            self.device if not self.index else f"{self.device}:{self.index}",
            "float16" if self.export.precision == "fp16" else "float32",
            f"{bits} blocks of 32 (MatMulNBits)" if bits else "none",
            {"onnxruntime": ort.__version__},
            int(np.prod(self.config.bank_shape())) * 4,
            inside,
        )

    def _initial_bank(self, batch: int) -> np.ndarray:
        shape = self.config.bank_shape(batch)
        bank = np.zeros(shape, np.float32)  # (l, b, n, d)
        if self.config.memory.init == "eye":
            bank += np.eye(shape[2], shape[3], dtype=np.float32)
        return bank


def open_model(path: Path, options: BackendOptions = BackendOptions(), progress: Any = None) -> OnnxBackend:
    """Load an exported folder, or a model folder through the cache of exports. dtype auto: the export's own; float32 when exporting for a CPU.

    Raises BackendError, ModelFileError, ConfigError or ConvertError.
    """
    from .onnx_cache import exported_folder, find_library, needed_precision

    folder = open_folder(path, progress, exported=True)
    if folder.export is None:
        folder = exported_folder(folder, options)
    assert folder.export is not None
    wanted, have = needed_precision(folder, options, None), folder.export.precision
    if options.dtype != "auto" and (wanted == "fp16") != (have == "fp16"):
        raise BackendError(
            f"dtype {options.dtype} is not what {path} was exported in ({have}): leave --dtype out, or export with --precision {wanted}"
        )
    plain = folder.export.plain
    session, device, index = open_session(folder, options.device, options.threads, lambda kind: None if plain else find_library(kind))
    return OnnxBackend(folder, session, device, index)
