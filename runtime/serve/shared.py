"""A backend that several jobs use at once: what a job asks of it in a strand is done by the thread that owns the model. Knows no job, no round, no session.

Libraries may bind what they make to a thread (MLX its streams, OpenMP its threads), so every call is made in one. Feeding tokens lets other jobs go on
meanwhile; everything else is done at once.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...models.opening import Opening
from ..backend import Backend, Description, MemoryState, one_by_one
from .strand import here

if TYPE_CHECKING:
    from ..loading import Model


PIECE = 128  # tokens that a CPU reads at a time


class Call(NamedTuple):
    """What is to be done at once, in the model's thread."""

    run: Callable[[], Any]


class Feed(NamedTuple):
    """Tokens (b, t) for a window, when this job's turn comes. The answer is Backend.extend's."""

    backend: Backend
    tokens: np.ndarray
    window: Any
    all_logits: bool

    @property
    def one(self) -> bool:
        """Whether it is a token of an answer, or as short as one."""
        return self.tokens.shape[1] == 1


class Shared:
    """The Backend protocol over `real`. piece: tokens of one turn; longer ones are fed in pieces, always the same, so that an answer does not depend on who
    else is there. 0: never cut. Outside of strands calls go straight through."""

    def __init__(self, real: Backend, piece: int):
        self.real, self.piece = real, piece
        self.config, self.longest = real.config, real.longest

    def start(
        self, batch: int = 1, state: MemoryState | None = None, window: int | None = None, carried: int = 0, opening: Opening | None = None
    ) -> Any:
        more = {} if opening is None else {"opening": opening}
        return done(lambda: self.real.start(batch, state, window, carried, **more))

    def extend(self, tokens: Sequence[int] | np.ndarray, window: Any, all_logits: bool = False) -> tuple[np.ndarray, Any]:
        strand = here()
        if strand is None:
            return self.real.extend(tokens, window, all_logits)
        ids = np.asarray(tokens, dtype=np.int64)
        ids = ids[None] if ids.ndim == 1 else ids  # (b, t)
        t = max(1, ids.shape[1])
        step = self.piece or t
        given: list[np.ndarray] = []
        for begin in range(0, t, step):
            logits, window = strand.pause(Feed(self.real, ids[:, begin : begin + step], window, all_logits))
            given.append(logits)
        return (np.concatenate(given, axis=1) if all_logits else given[-1]), window

    def step(self, tokens: Sequence[int], windows: Sequence[Any]) -> tuple[np.ndarray, list[Any]]:
        return one_by_one(self, tokens, windows)  # who takes turns feeds one window

    def rewind(self, window: Any, length: int) -> Any:
        return self.real.rewind(window, length)  # computes nothing

    def copied(self, window: Any) -> Any:
        return done(lambda: self.real.copied(window))

    def fold(self, window: Any) -> Any:
        return done(lambda: self.real.fold(window))

    def memory(self, window: Any) -> MemoryState:
        state: MemoryState = done(lambda: self.real.memory(window))
        return state

    def rows(self, window: Any, first: int, count: int) -> np.ndarray:
        found: np.ndarray = done(lambda: self.real.rows(window, first, count))
        return found

    def commit(self, window: Any) -> MemoryState:
        state: MemoryState = done(lambda: self.real.commit(window))
        return state

    def to_host(self, state: MemoryState) -> np.ndarray:
        bank: np.ndarray = done(lambda: self.real.to_host(state))
        return bank

    def from_host(self, bank: np.ndarray, written: int) -> MemoryState:
        state: MemoryState = done(lambda: self.real.from_host(bank, written))
        return state

    def describe(self, window: int | None = None) -> Description:
        return self.real.describe(window)


def piece_of(model: "Model") -> int:
    """The pieces in which a model reads beside others: what takes a CPU under a second; a chunk on other devices, and where a cell runs all of it again for
    each piece."""
    memory = model.config.memory
    again = memory.cell == "released" and memory.gate_pool == "chunk"
    return PIECE if model.backend.describe().device == "cpu" and not again else 0


def done(run: Callable[[], Any]) -> Any:
    """What run() returns, called in the thread that owns the model, while others wait."""
    strand = here()
    return run() if strand is None else strand.pause(Call(run))
