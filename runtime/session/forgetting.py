"""Taking one turn out of a conversation's moments: its rows out of the memory, its tokens out of the window. Knows cursors and a backend, no text.

A moment without the turn is the memory its window began with, the turn's rows never written, and the window's other tokens, run again with the folds
they had. A turn that was said in this window leaves no trace at all; of an older one the rows that it wrote are gone. Axes: l banks, n rows, d width.
"""

from typing import NamedTuple

import numpy as np

from ..backend import Backend, MemoryState
from .cursor import Cursor
from .ledger import Ledger, spans_of, turns_of


class Forgotten(NamedTuple):
    """What forgetting a turn took: rows of the memory, tokens of the window, messages of the transcript; and how many turns can still be undone."""

    rows: int
    tokens: int
    messages: int
    undo: int


class Forgetting:
    """Takes turn `number` out of cursors of one session; those that share a memory share the new one."""

    def __init__(self, backend: Backend, number: int):
        self.backend, self.number = backend, number
        self._memories: dict[int, tuple[MemoryState, MemoryState, Ledger | None]] = {}  # the old one is held, so that its id stays its own

    def knows(self, at: Cursor) -> bool:
        """Whether anything of the turn is in the moment."""
        here = self.number in turns_of(at.spans, 0, at.filled)
        return here or any(ledger is not None and ledger.knows(self.number) for ledger in (at.ledger, at.held))

    def without(self, at: Cursor, messages: int) -> Cursor:
        """The moment without the turn, at rest. messages: of the transcript that are the turn's."""
        turns, tokens = turns_of(at.spans, 0, at.filled), at.tokens + at.pending
        keeps = turns != self.number  # (t,)
        place = np.concatenate(([0], np.cumsum(keeps))).tolist()  # of each length of the old window in the new one
        carried = place[at.carried]
        memory, ledger = self._memory(at)
        return at.at_rest()._replace(
            memory=memory,
            ledger=ledger,
            tokens=tuple(t for t, keep in zip(tokens, keeps, strict=True) if keep),
            pending=(),
            folds=tuple(sorted({place[f] for f in at.folds if place[f] > carried})),
            carried=carried,
            starts=tuple(sorted({place[s] for s in at.starts if s == at.filled or keeps[s]})),
            spans=spans_of(turns[keeps]),
            turns=at.turns - messages,
        )

    def _memory(self, at: Cursor) -> tuple[MemoryState, Ledger | None]:
        """The memory at the window's start with the turn's rows as they were before the first word, and its ledger.

        A row that was written again may hold more of the turn's topics than of its words: that of topics goes wherever anything of the turn is left.
        """
        if at.ledger is None:
            return at.memory, None
        if id(at.memory) not in self._memories:
            gone, memory, memories = at.ledger.of(self.number), at.memory, self.backend.config.memory.memories
            touched = gone | (at.ledger.parts(self.number) > 0) if self.backend.config.memory.topics else gone
            if touched.any():
                never = self.backend.to_host(self.backend.memory(self.backend.start(1)))  # (l, 1, n, d)
                bank = self.backend.to_host(memory)  # (l, 1, n, d)
                bank[:memories, :, gone] = never[:memories, :, gone]
                bank[memories:, :, touched] = never[memories:, :, touched]
                memory = self.backend.from_host(bank, memory.written)
            self._memories[id(at.memory)] = (at.memory, memory, at.ledger.without(self.number))
        return self._memories[id(at.memory)][1:]
