"""A window as sessions have them: tokens carried over, folds after turns of unequal length, and one after a whole chunk. Cell gated.

Knows the backend contract and tokens. W positions of the window, t tokens, v vocabulary, l banks, n rows, d width.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from ...models.config import LM2Config
from ..backend import Backend, MemoryState
from .inputs import Inputs, Kind, split
from .measures import LogitStats, bank_nmse


@dataclass(frozen=True)
class Script:
    """What is fed to a window and where it is folded. tokens (t,) int64; carried: the first so many are in the memory; folds: lengths, ascending."""

    tokens: np.ndarray
    kind: Kind
    carried: int
    folds: tuple[int, ...]
    calls: tuple[int, ...]


@dataclass
class Windowed:
    """The outcome. logits of every position; worst: position of the largest difference; banks: NMSE of each bank after each fold and at the end."""

    script: Script
    logits: LogitStats = field(default_factory=LogitStats)
    banks: list[list[float]] = field(default_factory=list)


def script(config: LM2Config, inputs: Inputs) -> Script:
    """Two chunks in one window: a quarter chunk carried, turns of an eighth, a half and a whole chunk that end in folds, and some tokens after them."""
    t, most = inputs.tokens, config.max_position_embeddings
    ends = list(itertools.accumulate((t // 4, max(1, t // 8), max(1, t // 2), t, max(1, t // 8))))
    carried, *folds, length = (min(end, most) for end in ends)
    marks = tuple(dict.fromkeys(f for f in folds if carried < f))
    kind: Kind = "text" if inputs.has_text else "random"
    ids = np.array(inputs.text(length), dtype=np.int64) if inputs.has_text else inputs.drawn(length, 0)  # (t,)
    rng, calls = np.random.default_rng((inputs.seed, length, 2)), list[int]()
    for begin, end in itertools.pairwise(sorted({0, carried, *marks, length})):
        calls += split(end - begin, rng)
    return Script(ids, kind, carried, marks, tuple(calls))


def feed(backend: Backend, state: MemoryState, given: Script) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Logits of each call, (t, v), and the bank (l, 1, n, d) where it ended in a fold or with the window."""
    window = backend.start(1, state, len(given.tokens), given.carried)
    for piece in np.split(given.tokens, np.cumsum(given.calls)[:-1]):
        logits, window = backend.extend(piece, window, True)  # (1, t, v)
        bank = None
        if window.length in given.folds:
            window = backend.fold(window)
            bank = backend.to_host(backend.memory(window))
        elif window.length == len(given.tokens):
            bank = backend.to_host(backend.commit(window))
        yield logits[0], bank


def compare_window(reference: Backend, other: Backend, given: Script, state: MemoryState) -> Windowed:
    """Both from the reference's `state`, in the same calls."""
    out = Windowed(given)
    same = other.from_host(reference.to_host(state), state.written)
    for (p, mine), (q, theirs) in zip(feed(reference, state, given), feed(other, same, given), strict=True):
        out.logits.add(p, q)
        if mine is not None and theirs is not None:
            out.banks.append(bank_nmse(mine, theirs))
    return out
