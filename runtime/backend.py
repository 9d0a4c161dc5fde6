"""The one contract between the runtime and whatever computes: the Backend protocol, and how a backend is found.

Knows no ML library. State goes in and comes out; a backend keeps weights and constants, never a conversation.
"""

import importlib
import importlib.util
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..models.checkpoints.progress import Report, silent
from ..models.config import LM2Config
from ..models.errors import BackendError

BACKENDS = ("torch", "mlx", "onnx")


class MemoryState(NamedTuple):
    """What crosses a chunk border. bank: (l, b, n, d) float32, a backend's own array type. chunks: how many were committed."""

    bank: Any
    chunks: int


class Description(NamedTuple):
    """What a backend says of itself. Bytes are of one sequence: state_bytes of the bank, chunk_bytes of everything inside a chunk (KV and rows)."""

    backend: str
    device: str
    dtype: str
    quantization: str
    versions: dict[str, str]
    state_bytes: int
    chunk_bytes: int


class Chunk(Protocol):
    """A chunk in progress. A backend's own type; the runtime reads only how many positions are filled."""

    @property
    def length(self) -> int: ...


class Backend(Protocol):
    """Computes the model. b batch, t tokens of a call, v vocabulary, l banks, n rows, d width."""

    config: LM2Config

    def start(self, batch: int = 1, state: MemoryState | None = None) -> Any:
        """Begin a chunk from a memory state, or from the never-written one. Returns a chunk of length 0."""
        ...

    def extend(self, tokens: Sequence[int] | np.ndarray, chunk: Any, all_logits: bool = False) -> tuple[np.ndarray, Any]:
        """Feed t tokens, (t,) or (b, t), at positions length .. length + t - 1 of the chunk.

        Returns float32 logits of the last position, (b, v), or of every position given, (b, t, v); and the longer chunk.
        The same numbers however tokens are split over calls. The chunk passed in stays valid for `rewind` and `commit` at its own
        length until something else is fed after that length. Raises BackendError past the chunk's end.
        """
        ...

    def rewind(self, chunk: Any, length: int) -> Any:
        """The same chunk with only its first `length` tokens. Costs nothing: positions after `length` are simply not looked at."""
        ...

    def commit(self, chunk: Any) -> MemoryState:
        """End the chunk: the state the next chunk will read. Rows of positions not reached keep their content."""
        ...

    def to_host(self, state: MemoryState) -> np.ndarray:
        """The bank as float32 (l, b, n, d) in host memory, little-endian."""
        ...

    def from_host(self, bank: np.ndarray, chunks: int) -> MemoryState:
        """A state from `to_host`'s array, on the backend's device."""
        ...

    def describe(self) -> Description: ...


@dataclass(frozen=True)
class BackendOptions:
    """What a user may ask of any backend. `device` auto|cpu|cuda|cuda:N|gpu, `dtype` auto|float32|bfloat16|float16, `threads` 0 = the library's own choice.

    `report` hears of work that is done once, such as an export.
    """

    device: str = "auto"
    dtype: str = "auto"
    threads: int = 0
    report: Report = field(default=silent, compare=False)


def installed(name: str) -> bool:
    """Whether the ML library behind backend `name` can be imported, without importing it."""
    module = {"torch": "torch", "mlx": "mlx", "onnx": "onnxruntime"}[name]
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # hidden on purpose, or half removed
        return False


def choose(name: str) -> str:
    """Resolve `auto`: mlx on Apple silicon, else torch, else onnx, else mlx, by what is installed and part of this version.

    Raises BackendError for an unknown name, a backend this version does not have, or a missing extra (naming the extra).
    """
    if name == "auto":
        order = ("mlx", "torch", "onnx") if (platform.system(), platform.machine()) == ("Darwin", "arm64") else ("torch", "onnx", "mlx")
        for candidate in order:
            if _module(candidate) and installed(candidate):
                return candidate
        raise BackendError(f"no backend is installed: pip install 'lm2[{order[0]}]'")
    if name not in BACKENDS:
        raise BackendError(f"backend {name!r} must be one of auto, {', '.join(BACKENDS)}")
    if not _module(name):
        have = ", ".join(b for b in BACKENDS if _module(b))
        raise BackendError(f"this version of lm2 has no {name} backend (it has: {have}): use --backend {have.split(',')[0]}")
    if not installed(name):
        raise BackendError(f"backend {name} is not installed: pip install 'lm2[{name}]'")
    return name


def open_backend(name: str, model: Path, options: BackendOptions = BackendOptions()) -> Backend:
    """Load the model folder `model` into backend `name` (or auto). Raises BackendError, ModelFileError or ConfigError."""
    name = choose(name)
    try:
        module = importlib.import_module(f".backends.{name}_backend", __package__)
    except ImportError as error:
        raise BackendError(f"backend {name} is installed but does not load ({error}): reinstall it, pip install 'lm2[{name}]'") from error
    return module.open_model(model, options)


def _module(name: str) -> bool:
    return (Path(__file__).parent / "backends" / f"{name}_backend.py").exists()
