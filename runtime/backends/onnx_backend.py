"""The onnx backend: an exported model in ONNX Runtime behind the runtime's contract, on CPU or CUDA. Needs neither torch nor onnx.

Knows ONNX Runtime and the names of docs/onnx.md. A model folder that was not exported yet is exported once, into the cache. Keeps the session,
no conversation; a window owns its buffers.
"""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort

from ...models.checkpoints.progress import Event
from ...models.errors import BackendError
from ...models.layout import ModelFolder, open_folder
from ...models.opening import Opening, carried_with
from ..backend import BackendOptions, Description, MemoryState, check_rewind, check_room, check_window, one_by_one
from .onnx_buffers import NUMBERS, TYPES, At, Buffers, number_counts, zeros
from .onnx_session import PREFIX, is_unpacked, open_session
from .onnx_together import Stand, Together
from .onnx_trace import run_traced, traced_values


class OnnxWindow(NamedTuple):
    """A window in progress of `size` positions. bank (l, b, n, d) float32 as it stood at the start, None after a fold; buffers hold everything else.

    written: tokens in the bank, ever, and `folded` positions of the window are among them: by a fold, or the first `carried` from the start.
    The first `opened` positions are an opening's: they count as carried.
    Buffers are written in place after `length` only, so an older window stays good for rewinding until something else is fed after it, or it
    is folded. A fold is only noted here; the next call does it, and then the buffers say as much.
    """

    bank: np.ndarray | None
    written: int
    length: int
    buffers: Buffers
    size: int
    folded: int = 0
    carried: int = 0
    opened: int = 0

    @property
    def stale(self) -> bool:
        """Whether its buffers were folded since, or a fold of them failed half-way: then only running the window again helps."""
        return self.buffers.spoiled or self.buffers.written > self.written


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
        self._state = {past: present for past, present in state.items() if past not in NUMBERS}
        self._plan = {i.name: (TYPES[i.type], tuple(i.shape[1:])) for i in session.get_inputs() if i.name in self._state}
        positions = m.chunk if self._exact else self._plan["past_key.0"][1][1]
        self._fixed = positions if isinstance(positions, int) else None  # of every window
        self.longest = self.config.max_position_embeddings if self._fixed is None else self._fixed
        self._largest = float("inf") if self._exact else float(np.finfo(np.empty(0, self._plan["past_key.0"][0]).dtype).max)
        self._together = None
        if device == "cpu" and number_counts(session, 2).get("past_length") == 2:
            self._together = Together(session, self._state, self.config.vocab_size)
        self._zeros: dict[int, np.ndarray] = {}  # banks that were never written, by their batch
        self._path, self._traced = folder.path, traced_values(metadata)
        if self._traced and importlib.util.find_spec("onnx") is not None:
            self.trace = self._trace

    def start(
        self, batch: int = 1, state: MemoryState | None = None, window: int | None = None, carried: int = 0, opening: Opening | None = None
    ) -> OnnxWindow:
        state = MemoryState(self._initial_bank(batch), 0) if state is None else state
        most, chunk = self._fixed, self.config.memory.chunk
        size = window if window is not None else chunk if most is None else min(chunk, most)
        check_window(self.config, size, carried)
        if most is not None and size > most:
            raise BackendError(f"a window of {size} tokens does not fit: {self._path} was exported with --window {most}: export it without")
        carried = carried_with(opening, self.config, size, carried, self._largest)
        arrays = self._begun(batch, state, size)
        p = 0 if opening is None else opening.positions
        if opening is not None:
            for name, given in zip(("past_key", "past_value"), opening, strict=True):
                for i, layer in enumerate(given):
                    arrays[f"{name}.{i}"][:, :, :p] = layer  # (k, p, e)
        buffers = Buffers(self.session, self.device, self.index, self._state, arrays, state.written, carried, self._unwritten(state.bank))
        if p and self._unwritten(state.bank):
            buffers.opened(p)
        elif p:
            buffers.begin(At(0, state.written, carried, carried), p, self.config.vocab_size)
        return OnnxWindow(state.bank, state.written, p, buffers, size, carried, carried, p)

    def _begun(self, batch: int, state: MemoryState, window: int) -> dict[str, np.ndarray]:
        """Every state array of a window that begins from `state`, batch first. Raises BackendError for a state of another shape."""
        if tuple(state.bank.shape) != self.config.bank_shape(batch):
            raise BackendError(
                f"a memory of shape {list(state.bank.shape)} does not fit: this model's is {list(self.config.bank_shape(batch))}"
            )
        shapes = {name: ((batch, *(window if n == "window" else n for n in shape)), np.dtype(kind)) for name, (kind, shape) in self._plan.items()}
        arrays = zeros(shapes)
        if "past_bank" in arrays and not self._unwritten(state.bank):
            arrays["past_bank"][:] = state.bank.swapaxes(0, 1)  # (b, l, n, d), written at a fold
        return arrays

    def _unwritten(self, bank: np.ndarray | None) -> bool:
        """Whether it is a bank of zeros that nothing was ever written in: what a window reads of it is zeros too, as its buffers are from the start."""
        return bank is not None and bank is self._zeros.get(bank.shape[1]) and self.config.memory.cell == "gated"

    def _trace(self, tokens: Sequence[int] | np.ndarray, state: MemoryState) -> list[tuple[str, np.ndarray]]:
        """What each layer computed for a new window of `tokens` (t,) or (b, t): names of models/trace.py and float32 arrays. Opens the model again."""
        ids = np.atleast_2d(np.array(tokens, dtype=np.int64))  # (b, t)
        numbers, values = number_counts(self.session, len(ids)), {"past_written": state.written, "new_chunk": 1}
        arrays = self._begun(len(ids), state, ids.shape[1])
        feeds = arrays | {"input_ids": ids} | {name: np.full(count, values.get(name, 0), np.int64) for name, count in numbers.items()}
        made = run_traced(self._path, self.session, feeds, self._traced)
        if self.config.memory.cell != "gated":
            return made
        _, window = self.extend(ids, self.start(len(ids), state))  # rows are made at a fold: after what was read for them
        places = (state.written + np.arange(ids.shape[1])) % self.config.memory.slots
        rows = self.commit(window).bank[:, :, places]  # (l, b, t, d)
        out = []
        for name, value in made:
            out.append((name, value))
            layer, _, part = name.removeprefix("layers.").partition(".")
            if part == "memory.add":
                out.append((f"layers.{layer}.memory.rows", rows[self.config.memory.layers.index(int(layer))]))
        return out

    def extend(self, tokens: Sequence[int] | np.ndarray, window: OnnxWindow, all_logits: bool = False) -> tuple[np.ndarray, OnnxWindow]:
        ids = np.array(tokens, dtype=np.int64)
        ids = ids[None] if ids.ndim == 1 else ids  # (b, t)
        b, t = ids.shape
        past, buffers = window.length, window.buffers
        if t == 0:
            raise BackendError("extend needs at least one token")
        self._check_ids(ids)
        check_room(past, t, window.size, window.folded, self.config.memory.chunk)
        at = self._at(window)
        new = 3 if at.written < window.written else 0
        if past == 0 and not self._unwritten(window.bank):
            new = 1
        first = 0 if all_logits else -1
        if self._one_by_one and b > 1 and t > 1 and past:
            if new == 3:  # of all sequences at once, with a first token
                (begun, window), more = self.extend(ids[:, :1], window, all_logits), ids[:, 1:]
                logits, window = self.extend(more, window, all_logits)
                return (np.concatenate((begun, logits), axis=1) if all_logits else logits), window
            parts = [buffers.run(ids[s : s + 1], new, at, first, self.config.vocab_size, sequence=s) for s in range(b)]
            logits = np.concatenate(parts)
        else:
            logits = buffers.run(ids, new, at, first, self.config.vocab_size)  # (b, t or 1, v)
        return (logits if all_logits else logits[:, 0]), window._replace(length=past + t)

    def _at(self, window: OnnxWindow) -> At:
        """Where a call on `window` stands, its fold still to be done if the buffers do not have it. Raises BackendError for a window folded since."""
        buffers = window.buffers
        if window.stale:
            how = "its last fold failed half-way" if buffers.spoiled else f"it was folded since it had {window.folded} tokens in the memory"
            raise BackendError(f"this window cannot go on, {how}: run its tokens again in a new one")
        return At(window.length, buffers.written, buffers.folded, window.carried)

    def _check_ids(self, ids: np.ndarray) -> None:
        if ids.min() < 0 or ids.max() >= self.config.vocab_size:
            raise BackendError(f"token ids must lie from 0 to {self.config.vocab_size - 1}, got {ids.min()} to {ids.max()}")

    def step(self, tokens: Sequence[int], windows: Sequence[OnnxWindow]) -> tuple[np.ndarray, list[OnnxWindow]]:
        """See Backend. In one run go the windows that have begun and have no fold to do; the others, of which there are few, one by one."""
        ready: dict[int, int] = {}  # of each buffers the first of its windows
        for i, window in enumerate(windows if self._together is not None else ()):
            if window.length and not window.stale and window.buffers.written == window.written:
                ready.setdefault(id(window.buffers), i)
        chosen = list(ready.values())
        if self._together is None or len(chosen) < 2:
            return one_by_one(self, tokens, windows)
        self._check_ids(np.array(tokens))
        for window in windows:
            check_room(window.length, 1, window.size, window.folded, self.config.memory.chunk)
        logits, longer = np.empty((len(windows), self.config.vocab_size), np.float32), list(windows)  # (windows, v)
        for i in set(range(len(windows))) - set(chosen):
            logits[i : i + 1], longer[i] = self.extend([tokens[i]], windows[i])
        logits[chosen] = self._together.step([tokens[i] for i in chosen], [Stand(windows[i].buffers, self._at(windows[i])) for i in chosen])
        return logits, [w._replace(length=w.length + 1) if i in chosen else w for i, w in enumerate(longer)]

    def rewind(self, window: OnnxWindow, length: int) -> OnnxWindow:
        check_rewind(window.length, length, window.folded, window.carried, window.opened)
        return window._replace(length=length)

    def copied(self, window: OnnxWindow) -> OnnxWindow | None:
        """See Backend. On a CPU, cell gated."""
        if self.device != "cpu" or self.config.memory.cell != "gated" or window.stale:
            return None
        return window._replace(buffers=window.buffers.copied())

    def fold(self, window: OnnxWindow) -> OnnxWindow:
        if self.config.memory.cell != "gated":
            raise BackendError("cell released cannot fold: its chunk is its window")
        count = window.length - window.folded
        if count <= 0:
            return window
        self._at(window)
        return window._replace(bank=None if self.config.memory.banks else window.bank, written=window.written + count, folded=window.length)

    def memory(self, window: OnnxWindow) -> MemoryState:
        if window.bank is not None:
            return MemoryState(window.bank, window.written)
        at, bank = self._at(window), window.buffers.tensors["past_bank"].numpy()  # (b, l, n, d)
        if at.written < window.written:
            bank = window.buffers.bank_after(at._replace(length=window.folded), self.config.vocab_size)
        return MemoryState(np.array(bank.swapaxes(0, 1), order="C"), window.written)

    def rows(self, window: OnnxWindow, first: int, count: int) -> np.ndarray:
        """See Backend. On a device the bank is copied whole: ONNX Runtime copies no parts."""
        places = (first + np.arange(count)) % self.config.memory.slots  # (count,)
        if window.bank is None and self._at(window).written == window.written:
            return window.buffers.tensors["past_bank"].numpy()[:, :, places].swapaxes(0, 1).copy()  # (l, b, count, d)
        found: np.ndarray = self.memory(window).bank[:, :, places]
        return found

    def commit(self, window: OnnxWindow) -> MemoryState:
        length, m, buffers = window.length, self.config.memory, window.buffers
        if length <= window.folded:
            return self.memory(window)
        written = window.written + length - window.folded
        if m.cell == "gated" and m.banks:
            bank = buffers.bank_after(self._at(window), self.config.vocab_size)  # (b, l, n, d)
            return MemoryState(np.ascontiguousarray(bank.swapaxes(0, 1)), written)
        assert window.bank is not None  # nothing was folded: there is no memory, or its cell is released
        if self._exact and buffers.length != length:  # its rows depend on every token of the window
            tokens = np.ascontiguousarray(buffers.tensors["past_tokens"].numpy()[:, :length])
            buffers.run(tokens, 1, At(0, window.written), -1, self.config.vocab_size)
        bank = window.bank.copy()
        if m.banks:
            bank[:, :, :length] = buffers.tensors["past_rows"].numpy()[:, :, :length].swapaxes(0, 1)  # (l, b, s, d)
        return MemoryState(bank, written)

    def to_host(self, state: MemoryState) -> np.ndarray:
        return np.array(state.bank, dtype="<f4")  # (l, b, n, d)

    def from_host(self, bank: np.ndarray, written: int) -> MemoryState:
        if bank.ndim != 4 or tuple(bank.shape) != self.config.bank_shape(bank.shape[1]):
            raise BackendError(f"a memory of shape {list(bank.shape)} does not fit: this model's is {list(self.config.bank_shape())}")
        return MemoryState(np.array(bank, dtype=np.float32, order="C"), written)  # (l, b, n, d)

    def describe(self, window: int | None = None) -> Description:
        size, inside = window or self.config.memory.chunk, 0  # a file's own number of positions goes before
        for name, (kind, shape) in self._plan.items():
            if name != "past_bank":
                inside += np.dtype(kind).itemsize * int(np.prod([size if n == "window" else n for n in shape]))
        bits = {"int8": "8-bit", "int4": "4-bit"}.get(self.export.precision)
        return Description(
            "onnx",
            self.device if not self.index else f"{self.device}:{self.index}",
            "float16" if self.export.precision == "fp16" else "float32",
            f"{bits} blocks of 32" if bits else "none",
            {"onnxruntime": ort.__version__},
            int(np.prod(self.config.bank_shape())) * 4,
            inside,
        )

    def _initial_bank(self, batch: int) -> np.ndarray:
        shape = self.config.bank_shape(batch)
        if self.config.memory.init == "eye":
            return np.zeros(shape, np.float32) + np.eye(shape[2], shape[3], dtype=np.float32)  # (l, b, n, d)
        if batch not in self._zeros:
            self._zeros[batch] = np.zeros(shape, np.float32)
            self._zeros[batch].setflags(write=False)
        return self._zeros[batch]


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
    session, device, index = open_session(folder, options.device, options.threads, lambda kind: None if plain else find_library(kind, options.report))
    if is_unpacked(folder.export, session):
        again = "its matrices are unpacked to float32, which is slower and takes 4 bytes a number: export it again with `lm2 export MODEL DST`"
        options.report(Event(f"{path} was exported by an earlier lm2: {again}", note=True))
    return OnnxBackend(folder, session, device, index)
