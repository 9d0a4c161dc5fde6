"""The mlx backend: the MLX mirror behind the runtime's contract, on Metal, CUDA or a CPU. Needs neither torch nor onnx.

Knows devices, dtypes and NumPy at its borders; what is computed is in lm2_mlx/. Keeps weights and rotary tables, no conversation.
Every call computes before it returns: nothing lazy is handed out, so states may pass from one thread to another.
"""

import ctypes
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ...lm2_mlx.blas import REMEDY, preloaded, wrong_product
from ...lm2_mlx.model import LM2
from ...lm2_mlx.trace import trace
from ...lm2_mlx.weights import DTYPES, load_model
from ...lm2_mlx.window import WindowState, evaluate
from ...models.errors import BackendError
from ...models.layout import ModelFolder, open_folder
from ...models.opening import Opening
from ..backend import BackendOptions, Description, MemoryState, check_rewind, check_room, one_by_one


class MLXBackend:
    """Runs an MLX LM2. Deterministic for a given device, dtype and MLX version."""

    def __init__(self, model: LM2, device: mx.Device, quantization: str = "none"):
        self.model, self.device, self.quantization = model, device, quantization
        self.config, self.longest = model.config, model.config.max_position_embeddings

    def start(
        self, batch: int = 1, state: MemoryState | None = None, window: int | None = None, carried: int = 0, opening: Opening | None = None
    ) -> WindowState:
        with mx.stream(self.device):
            bank, written = (self.model.initial_bank(batch), 0) if state is None else state
            if tuple(bank.shape) != self.config.bank_shape(batch):
                raise BackendError(
                    f"a memory of shape {list(bank.shape)} does not fit: this model's is {list(self.config.bank_shape(batch))}"
                )
            try:
                return self.model.start(bank, written, window, carried, opening)
            except ValueError as error:
                raise BackendError(f"{error}: choose another window") from None

    def extend(self, tokens: Sequence[int] | np.ndarray, window: WindowState, all_logits: bool = False) -> tuple[np.ndarray, WindowState]:
        host = np.asarray(tokens, dtype=np.int64)
        host = host[None] if host.ndim == 1 else host  # (b, t)
        if host.shape[1] == 0:
            raise BackendError("extend needs at least one token")
        if host.min() < 0 or host.max() >= self.config.vocab_size:  # MLX reads past the end of an embedding without a word
            raise BackendError(f"token ids must lie from 0 to {self.config.vocab_size - 1}, got {host.min()} to {host.max()}")
        check_room(window.length, host.shape[1], self.model.window(window), window.folded, self.config.memory.chunk)
        with mx.stream(self.device):
            logits, window = self.model.extend(mx.array(host.astype(np.int32)), window, all_logits)  # (b, t or 1, v)
            evaluate(window, logits)
            out = np.array(logits)
        return (out if all_logits else out[:, 0]), window

    def step(self, tokens: Sequence[int], windows: Sequence[WindowState]) -> tuple[np.ndarray, list[WindowState]]:
        return one_by_one(self, tokens, windows)

    def rewind(self, window: WindowState, length: int) -> WindowState:
        check_rewind(window.length, length, window.folded, window.carried, window.opened)
        return window._replace(length=length)

    def copied(self, window: WindowState) -> None:
        return None

    def fold(self, window: WindowState) -> WindowState:
        if self.config.memory.cell != "gated":
            raise BackendError("cell released cannot fold: its chunk is its window")
        with mx.stream(self.device):
            return self.model.fold(window)

    def memory(self, window: WindowState) -> MemoryState:
        return MemoryState(window.bank, window.written)

    def rows(self, window: WindowState, first: int, count: int) -> np.ndarray:
        with mx.stream(self.device):
            return np.array(self.model.rows(window, first, count))  # (l, b, count, d)

    def commit(self, window: WindowState) -> MemoryState:
        with mx.stream(self.device):
            bank, written = self.model.commit(window)
            mx.eval(bank)
        return MemoryState(bank, written)

    def to_host(self, state: MemoryState) -> np.ndarray:
        return np.array(state.bank, dtype="<f4")  # (l, b, n, d)

    def from_host(self, bank: np.ndarray, written: int) -> MemoryState:
        if bank.ndim != 4 or tuple(bank.shape) != self.config.bank_shape(bank.shape[1]):
            raise BackendError(f"a memory of shape {list(bank.shape)} does not fit: this model's is {list(self.config.bank_shape())}")
        with mx.stream(self.device):
            value = mx.array(np.ascontiguousarray(bank, dtype=np.float32))  # (l, b, n, d)
            mx.eval(value)
        return MemoryState(value, written)

    def trace(self, tokens: Sequence[int] | np.ndarray, state: MemoryState) -> list[tuple[str, np.ndarray]]:
        """What each layer computes for tokens (t,) in a new window, by name, float32 with a batch axis first (lm2_mlx/trace.py). For parity."""
        with mx.stream(self.device):
            ids = mx.array(np.asarray(tokens, dtype=np.int32))[None]  # (1, t)
            return [(name, np.array(x.astype(mx.float32))) for name, x in trace(self.model, ids, state.bank, state.written)]

    def describe(self, window: int | None = None) -> Description:
        c, m = self.config, self.config.memory
        item, width = self.model.dtype.size, m.heads * m.head_dim
        bank = int(np.prod(c.bank_shape())) * 4
        kv = 2 * c.num_hidden_layers * c.num_key_value_heads * (window or m.chunk) * c.head_dim * item
        if m.cell == "gated":
            inside = len(m.layers) * (2 * m.chunk * c.hidden_size * 4 + m.slots * (2 * width + m.heads * self.model.cpu) * item)
            inside += m.slots * c.hidden_size * 4 if m.topics else 0
        elif m.gate_pool == "causal":
            inside = c.num_hidden_layers * m.chunk * (2 * width * item + c.hidden_size * 4) + m.chunk * m.slots * 4
        else:
            kv, inside = 0, bank + m.chunk * 4
        dtype = str(self.model.dtype).removeprefix("mlx.core.")
        return Description("mlx", device_name(self.device), dtype, self.quantization, {"mlx": version("mlx")}, bank, kv + inside)


def device_name(device: mx.Device) -> str:
    """`cpu`, `metal` or `cuda`."""
    if device == mx.Device(mx.cpu):
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"


def pick_device(name: str) -> mx.Device:
    """`auto` is Metal or CUDA when there is one, else cpu. Raises BackendError for a device that is not there; never falls back silently."""
    gpu = mx.is_available(mx.gpu)
    if name == "auto":
        return mx.Device(mx.gpu if gpu else mx.cpu)
    if name == "cpu":
        return mx.Device(mx.cpu)
    kind, _, index = name.partition(":")
    if kind not in ("gpu", "cuda", "metal") or (index and not index.isdigit()):
        raise BackendError(f"device {name!r} must be auto, cpu, gpu, metal, cuda or cuda:N")
    there = gpu and (kind == "gpu" or (kind == "metal") == mx.metal.is_available())
    if not there:
        raise BackendError(
            f"device {name!r} is not there (this MLX {version('mlx')} has no {kind} back-end): use --device cpu, or pip install 'lm2[mlx-cuda]'"
        )
    if index and int(index) >= mx.device_count(mx.gpu):
        raise BackendError(f"device {name!r} is not there ({mx.device_count(mx.gpu)} seen by MLX {version('mlx')}): use --device {kind}")
    return mx.Device(mx.gpu, int(index or 0))


def set_threads(count: int) -> None:
    """Limit the threads of the BLAS that MLX computes with on a CPU. Raises BackendError where it has no such switch."""
    try:
        switch = ctypes.CDLL(None).openblas_set_num_threads
    except (AttributeError, OSError, TypeError):
        raise BackendError(f"--threads {count}: MLX cannot set threads here; leave it out, or preload OpenBLAS (docs/mlx.md)") from None
    switch(count)


def quantization_name(folder: ModelFolder) -> str:
    """`none`, or for example `4-bit group 32 (repacked)`."""
    q = folder.quantization
    return "none" if q is None else f"{q.bits}-bit group {q.group_size} ({q.method})"


def open_model(path: Path, options: BackendOptions = BackendOptions(), progress: Any = None) -> MLXBackend:
    """Load a model folder, plain or packed for MLX. dtype auto: the folder's own on a GPU; float32 on a CPU, where halves are slower.

    Raises BackendError, ModelFileError or ConfigError.
    """
    device = pick_device(options.device)
    cpu = device == mx.Device(mx.cpu)
    if cpu and preloaded() and (wrong := wrong_product(quick=True)):
        raise BackendError(f"the BLAS preloaded for MLX computes wrongly on this processor ({wrong}): {REMEDY}")
    folder = open_folder(path, quantized=True)
    folder = folder if options.memory else folder.without_memory()
    name = options.dtype
    if name == "auto":
        name = "float32" if cpu or folder.config.dtype not in DTYPES else folder.config.dtype
    if name not in DTYPES:
        raise BackendError(f"dtype {name!r} must be auto, {', '.join(DTYPES)}")
    if options.threads:
        set_threads(options.threads)
    with mx.stream(device):
        model = load_model(folder, name, cpu, progress)
    return MLXBackend(model, device, quantization_name(folder))
