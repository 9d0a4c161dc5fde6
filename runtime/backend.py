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
from ..models.opening import Opening

BACKENDS = ("torch", "mlx", "onnx")


class MemoryState(NamedTuple):
    """What outlives a window. bank: (l, b, n, d) float32, a backend's own array type. written: tokens in it, ever; number i lies in row i mod n."""

    bank: Any
    written: int


class Description(NamedTuple):
    """What a backend says of itself. Bytes are of one sequence: state_bytes of the bank, window_bytes of everything inside a window (KV, rows, reads)."""

    backend: str
    device: str
    dtype: str
    quantization: str
    versions: dict[str, str]
    state_bytes: int
    window_bytes: int


class Window(Protocol):
    """A window in progress. A backend's own type; the runtime reads only how many positions are filled, and how many of them are in the bank."""

    @property
    def length(self) -> int: ...

    @property
    def folded(self) -> int: ...

    @property
    def stale(self) -> bool:
        """Whether its buffers were folded since: then only running the window again helps."""
        ...


class Backend(Protocol):
    """Computes the model. b batch, t tokens of a call, v vocabulary, l banks, n rows, d width, W positions of a window, T tokens of a chunk.

    longest: W at most: the model's positions, or fewer in an export of one window.
    """

    config: LM2Config
    longest: int

    def start(
        self, batch: int = 1, state: MemoryState | None = None, window: int | None = None, carried: int = 0, opening: Opening | None = None
    ) -> Any:
        """Begin a window of length 0 from a memory state, or from the never-written one.

        window: W, by default a chunk; any size the model's positions allow (cell released: its chunk). carried: the first so many tokens are
        in the memory already: they read it and are not written again. opening (cell gated): keys and values of p positions that stand before every
        token, for all sequences. The window then begins with length p, its first token stands at position p, and the p positions are carried: they are
        never written. `carried` counts them; 0 means p. Raises BackendError for a window or an opening the model cannot have, or a `carried` below p.
        """
        ...

    def extend(self, tokens: Sequence[int] | np.ndarray, window: Any, all_logits: bool = False) -> tuple[np.ndarray, Any]:
        """Feed t tokens, (t,) or (b, t), at positions length .. length + t - 1 of the window.

        Returns float32 logits of the last position, (b, v), or of every position given, (b, t, v); and the longer window.
        The same numbers however tokens are split over calls. The window passed in stays valid for `rewind`, `fold` and `commit` at its own
        length until something else is fed after that length. Raises BackendError past the window's end, or past a chunk of tokens since the
        last fold.
        """
        ...

    def step(self, tokens: Sequence[int], windows: Sequence[Any]) -> tuple[np.ndarray, list[Any]]:
        """Feed one token to each of several windows of one sequence, which stand at lengths of their own: in one pass where the backend can, else one by one.

        Returns float32 logits (windows, v) and the longer windows: what `extend` gives for each, rounding apart. Where it raises, any of the windows may have
        been fed: those passed in are as good as before.
        """
        ...

    def rewind(self, window: Any, length: int) -> Any:
        """The same window with only its first `length` tokens. Costs nothing: positions after `length` are simply not looked at.

        Raises BackendError for less than what the last fold left: what is in the bank cannot be taken out again; and for less than an opening.
        """
        ...

    def copied(self, window: Any) -> Any:
        """The same window, of one sequence, in buffers of its own: what is fed to either is not in the other. What is filled is copied, nothing is computed.

        None where this backend, or this kind of window, has no copies: then only running its tokens again helps.
        """
        ...

    def fold(self, window: Any) -> Any:
        """Enter the rows of all tokens since the last fold into the bank, and read it from now on; keys, values and positions go on.

        What was passed in may be `stale` afterwards. Nothing new changes nothing. Raises BackendError for cell released, which cannot fold.
        """
        ...

    def memory(self, window: Any) -> MemoryState:
        """The state as of the window's last fold, or its start."""
        ...

    def rows(self, window: Any, first: int, count: int) -> np.ndarray:
        """Rows first mod n .. of the bank as of the window's last fold, round its end: float32 (l, b, count, d) in host memory, a copy. Cell gated.

        Costs no more than those rows where the fold has been made; a backend that makes it in the next call is asked after that one.
        """
        ...

    def commit(self, window: Any) -> MemoryState:
        """End the window: the state with all its tokens written, for the next one to read. Rows of positions not reached keep their content."""
        ...

    def to_host(self, state: MemoryState) -> np.ndarray:
        """The bank as float32 (l, b, n, d) in host memory, little-endian."""
        ...

    def from_host(self, bank: np.ndarray, written: int) -> MemoryState:
        """A state from `to_host`'s array, on the backend's device."""
        ...

    def describe(self, window: int | None = None) -> Description:
        """What computes, and the bytes of a sequence with windows of `window` positions (default: a chunk)."""
        ...


def one_by_one(backend: Backend, tokens: Sequence[int], windows: Sequence[Any]) -> tuple[np.ndarray, list[Any]]:
    """`Backend.step` by calls of `extend`."""
    fed = [backend.extend([token], window) for token, window in zip(tokens, windows, strict=True)]
    return np.concatenate([logits for logits, _ in fed]), [window for _, window in fed]


def check_window(config: LM2Config, window: int, carried: int) -> None:
    """Raise BackendError for a window the model cannot have."""
    m, most = config.memory, config.max_position_embeddings
    if not 1 <= window <= most:
        raise BackendError(f"a window of {window} tokens does not fit the model's {most} positions: choose another window")
    if m.cell == "released" and (window != m.chunk or carried):
        raise BackendError(f"cell released has windows of its chunk, {m.chunk} tokens, and carries none over: choose another window")
    if not 0 <= carried < window:
        raise BackendError(f"{carried} carried tokens do not fit in a window of {window}: choose another window")


def check_room(length: int, tokens: int, window: int, folded: int, chunk: int) -> None:
    """Raise BackendError where `tokens` more do not fit after `length`: in the window, or in a chunk since the last fold."""
    if length + tokens > window:
        raise BackendError(f"{length} + {tokens} tokens do not fit in a window of {window}: commit first")
    if length + tokens - folded > chunk:
        raise BackendError(f"{length + tokens - folded} tokens since the last fold do not fit in a chunk of {chunk}: fold first")


def check_rewind(length: int, to: int, folded: int, carried: int, opened: int = 0) -> None:
    """Raise BackendError where a window of `length` tokens cannot be taken back to `to`: past its ends, into its opening, or behind a fold."""
    if not 0 <= to <= length:
        raise BackendError(f"cannot rewind a window of {length} tokens to {to}")
    if to < opened:
        raise BackendError(f"cannot rewind to {to}: the window opens with {opened} positions of given keys and values")
    if to < folded and folded > carried:
        raise BackendError(f"cannot rewind to {to}: the window's first {folded} tokens are in the memory")


@dataclass(frozen=True)
class BackendOptions:
    """What a user may ask of any backend. `device` auto|cpu|cuda|cuda:N|gpu, `dtype` auto|float32|bfloat16|float16, `threads` 0 = the library's own choice.

    `report` hears of work that is done once, such as an export. `memory` False: the backbone alone.
    """

    device: str = "auto"
    dtype: str = "auto"
    threads: int = 0
    report: Report = field(default=silent, compare=False)
    memory: bool = True


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
