"""The torch backend: the PyTorch reference behind the runtime's contract, on CPU or CUDA.

Knows devices, dtypes and NumPy at its borders; what is computed is in models/. Keeps weights and rotary tables, no conversation. On CUDA windows lie in static
buffers and one token is a replayed graph (torch_static.py).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...models import together
from ...models.copied import copied
from ...models.errors import BackendError
from ...models.kernels import choice
from ...models.layout import open_folder
from ...models.llama import wide
from ...models.lm2 import LM2, WindowState
from ...models.opening import Opening
from ...models.packed import available, pack
from ...models.trace import trace
from ...models.weights import TORCH_DTYPES, load_model
from ..backend import BackendOptions, Description, MemoryState, check_rewind, check_room, one_by_one
from .torch_static import StaticDecoder, StaticWindow, extra_bytes, suits


class TorchBackend:
    """Runs an LM2 module. Deterministic for a given device, dtype and thread count; see docs for what is bit-identical and what is not."""

    def __init__(self, model: LM2, static: bool | None = None):
        """`static`: windows in static buffers; by default where that is faster, on CUDA."""
        self.model = model
        self.config, self.longest = model.config, model.config.max_position_embeddings
        self._tables = model.tables()
        self._static = StaticDecoder(model) if (suits(model) if static is None else static) else None

    def start(
        self, batch: int = 1, state: MemoryState | None = None, window: int | None = None, carried: int = 0, opening: Opening | None = None
    ) -> WindowState | StaticWindow:
        with torch.inference_mode():
            if state is None:
                state = MemoryState(self.model.initial_bank(batch), 0)
            if tuple(state.bank.shape) != self.config.bank_shape(batch):
                raise BackendError(
                    f"a memory of shape {list(state.bank.shape)} does not fit: this model's is {list(self.config.bank_shape(batch))}"
                )
            try:
                self.model.check_window(self.config.memory.chunk if window is None else window, carried)
            except ValueError as error:
                raise BackendError(f"{error}: choose another window") from None
            opened = (self._static or self.model).start(state.bank, state.written, window, carried, opening)
            if window is not None and window > len(self._tables[0]):
                self._tables = self.model.tables(window)
            return opened

    def extend(
        self, tokens: Sequence[int] | np.ndarray, window: WindowState | StaticWindow, all_logits: bool = False
    ) -> tuple[np.ndarray, WindowState | StaticWindow]:
        ids = torch.as_tensor(np.asarray(tokens, dtype=np.int64))
        ids = ids[None] if ids.dim() == 1 else ids  # (b, t)
        if ids.shape[1] == 0:
            raise BackendError("extend needs at least one token")
        inner = window.inner if isinstance(window, StaticWindow) else window
        check_room(inner.length, ids.shape[1], self.model.window(inner), inner.folded, self.config.memory.chunk)
        with torch.inference_mode():
            if isinstance(window, StaticWindow):
                assert self._static is not None
                logits, longer = self._static.extend(ids, window, all_logits)  # (b, t or 1, v)
                out = np.array(logits.float().cpu().numpy())  # the buffer is written again by the next token
                return (out if all_logits else out[:, 0]), longer
            logits, inner = self.model.extend(ids.to(self.model.device), inner, self._tables, all_logits)  # (b, t or 1, v)
            out = logits.float().cpu().numpy()
            return (out if all_logits else out[:, 0]), inner

    def step(self, tokens: Sequence[int], windows: Sequence[WindowState | StaticWindow]) -> tuple[np.ndarray, list[WindowState | StaticWindow]]:
        states = [window for window in windows if isinstance(window, WindowState)]
        if len(states) < len(windows) or len(states) < 2 or self.config.memory.cell != "gated":
            return one_by_one(self, tokens, windows)
        for state in states:
            check_room(state.length, 1, self.model.window(state), state.folded, self.config.memory.chunk)
        with torch.inference_mode():
            ids = torch.as_tensor(np.asarray(tokens, dtype=np.int64)).to(self.model.device)  # (b,)
            logits, longer = together.step(self.model, ids, states, self._tables)  # (b, v)
            return logits.float().cpu().numpy(), list(longer)

    def rewind(self, window: WindowState | StaticWindow, length: int) -> WindowState | StaticWindow:
        inner = window.inner if isinstance(window, StaticWindow) else window
        check_rewind(inner.length, length, inner.folded, inner.carried, inner.opened)
        inner = inner._replace(length=length)
        return window._replace(inner=inner) if isinstance(window, StaticWindow) else inner

    def copied(self, window: WindowState | StaticWindow) -> WindowState | None:
        """See Backend. Not of static buffers, nor of cell released."""
        with torch.inference_mode():
            return None if isinstance(window, StaticWindow) else copied(window)

    def fold(self, window: WindowState | StaticWindow) -> WindowState | StaticWindow:
        if self.config.memory.cell != "gated":
            raise BackendError("cell released cannot fold: its chunk is its window")
        with torch.inference_mode():
            if isinstance(window, StaticWindow):
                assert self._static is not None
                return self._static.fold(window)
            return self.model.fold(window)

    def memory(self, window: WindowState | StaticWindow) -> MemoryState:
        inner = window.inner if isinstance(window, StaticWindow) else window
        return MemoryState(inner.bank, inner.written)

    def rows(self, window: WindowState | StaticWindow, first: int, count: int) -> np.ndarray:
        inner = window.inner if isinstance(window, StaticWindow) else window
        with torch.inference_mode():
            return np.array(inner.bank[:, :, self.model.places(first, count)].float().cpu().numpy())  # (l, b, count, d)

    def commit(self, window: WindowState | StaticWindow) -> MemoryState:
        with torch.inference_mode():
            return MemoryState(*self.model.commit(window.inner if isinstance(window, StaticWindow) else window))

    def to_host(self, state: MemoryState) -> np.ndarray:
        return np.array(state.bank.float().cpu().numpy(), dtype="<f4", order="C")  # (l, b, n, d), never a view of the state

    def from_host(self, bank: np.ndarray, written: int) -> MemoryState:
        if bank.ndim != 4 or tuple(bank.shape) != self.config.bank_shape(bank.shape[1]):
            raise BackendError(f"a memory of shape {list(bank.shape)} does not fit: this model's is {list(self.config.bank_shape())}")
        kind = wide(self.model.dtype)
        return MemoryState(torch.from_numpy(np.array(bank, dtype=np.float32)).to(self.model.device, kind), written)  # (l, b, n, d)

    def trace(self, tokens: Sequence[int] | np.ndarray, state: MemoryState) -> list[tuple[str, np.ndarray]]:
        """What each layer computes for tokens (t,) in a new window, by name, float32 with a batch axis first (models/trace.py). For parity."""
        ids = torch.as_tensor(np.asarray(tokens, dtype=np.int64)).to(self.model.device)[None]  # (1, t)
        with torch.inference_mode():
            return [(name, x.float().cpu().numpy()) for name, x in trace(self.model, ids, state.bank, state.written, self._tables)]

    def describe(self, window: int | None = None) -> Description:
        m, c = self.config.memory, self.config
        item = torch.empty(0, dtype=self.model.dtype).element_size()
        bank_item = torch.empty(0, dtype=wide(self.model.dtype)).element_size()
        bank = int(np.prod(c.bank_shape())) * bank_item
        kv = 2 * c.num_hidden_layers * c.num_key_value_heads * (window or m.chunk) * c.head_dim * item
        if m.cell == "gated":
            inside = (m.banks if self._static else 2 * len(m.layers)) * m.chunk * c.hidden_size * bank_item + len(m.layers) * 2 * m.slots * m.heads * m.head_dim * item
            inside += m.slots * c.hidden_size * bank_item if m.topics else 0
        elif m.gate_pool == "causal":
            inside = c.num_hidden_layers * m.chunk * (2 * m.slots * item + c.hidden_size * bank_item) + m.chunk * m.slots * bank_item
        else:
            kv, inside = 0, bank + m.chunk * 8
        versions: dict[str, str] = {"torch": torch.__version__}
        if self.model.device.type == "cuda":
            versions["kernels"] = choice.describe(self.model.device) + (", CUDA graphs" if self._static else "")
        return Description(
            "torch",
            str(self.model.device),
            str(self.model.dtype).removeprefix("torch."),
            "none",
            versions,
            bank,
            kv + inside + (extra_bytes(self.model) if self._static else 0),
        )


def pick_device(name: str) -> torch.device:
    """`auto` is cuda when there is one, else cpu. Raises BackendError for a device that is not there; never falls back silently."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = "cuda" if name == "gpu" else name
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BackendError(f"device {name!r} must be auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise BackendError(f"device {name!r} must be auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise BackendError(
            f"device {name!r} is not there ({torch.cuda.device_count()} CUDA devices seen by torch {torch.__version__}): use --device cpu"
        )
    return device


def open_model(path: Path, options: BackendOptions, progress: Any = None) -> TorchBackend:
    """Load a model folder. dtype auto: the folder's own on CUDA; float32 on CPU, where half precisions are slower or lossier."""
    device = pick_device(options.device)
    folder = open_folder(path)
    folder = folder if options.memory else folder.without_memory()
    name = options.dtype
    if name == "auto":
        name = folder.config.dtype if device.type == "cuda" else "float32"
    if name not in TORCH_DTYPES:
        raise BackendError(f"dtype {name!r} must be auto, {', '.join(TORCH_DTYPES)}")
    if options.threads:
        torch.set_num_threads(options.threads)
    model = load_model(folder, device, TORCH_DTYPES[name], progress)
    return TorchBackend(pack(model) if available(model) else model)
