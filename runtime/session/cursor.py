"""Where a session stands: the memory, the unfinished chunk, and how tokens get in. Knows ids and a backend, neither text nor files.

A Cursor is replaced whole, never edited: an interrupt at any moment leaves the old one or the new one.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ...models.errors import PromptError
from ..backend import Backend, MemoryState


class Cursor(NamedTuple):
    """memory: as the chunk reads it. chunk: the backend's, or None until it must be (re)run. tokens: fed so far; pending: to be fed next.

    logits (v,) after `tokens`. turn: index in tokens + pending where the current turn began. seen: tokens in all, each counted once.
    draws: random numbers used. turns: messages in the transcript.
    """

    memory: MemoryState
    chunk: Any = None
    tokens: tuple[int, ...] = ()
    pending: tuple[int, ...] = ()
    logits: np.ndarray | None = None
    turn: int = 0
    seen: int = 0
    draws: int = 0
    turns: int = 0

    @property
    def filled(self) -> int:
        """Positions of the chunk that are taken, fed or not."""
        return len(self.tokens) + len(self.pending)

    def at_rest(self) -> "Cursor":
        """The same point without anything that can be recomputed: what snapshots keep."""
        return self._replace(chunk=None, logits=None)


class Feeder:
    """The chunk rule over one backend: feed, commit, move a turn to a new chunk, cut a turn that is longer than a chunk.

    `overlap` tokens of a cut turn are repeated at the start of the next chunk. `on_commit(chunks, tokens)` hears of each commit,
    `on_feed(tokens)` of each forward pass. Holds no position: a cursor goes in and comes out.
    """

    def __init__(
        self,
        backend: Backend,
        overlap: int,
        on_commit: Callable[[int, int], None] | None = None,
        on_feed: Callable[[int], None] | None = None,
    ):
        self.backend = backend
        self.size = backend.config.memory.chunk
        if not 0 <= overlap <= self.size // 4:
            raise PromptError(f"overlap {overlap} must be from 0 to a quarter of a chunk ({self.size // 4})")
        self.overlap = overlap
        self.on_commit = on_commit or (lambda chunks, tokens: None)
        self.on_feed = on_feed or (lambda tokens: None)

    def new(self) -> Cursor:
        """A cursor with a memory that was never written."""
        bank = self.backend.commit(self.backend.start(1))
        return Cursor(MemoryState(bank.bank, 0))

    def flush(self, at: Cursor) -> Cursor:
        """Feed what is pending; re-run the unfinished chunk first if it is not there (after a restore, an undo, a fork)."""
        fresh = at.chunk is None
        ids = at.tokens + at.pending if fresh else at.pending
        if not ids:
            return at
        chunk = self.backend.start(1, at.memory) if fresh else at.chunk
        logits, chunk = self.backend.extend(np.asarray(ids, dtype=np.int64), chunk)  # (1, v)
        self.on_feed(len(ids))
        return at._replace(chunk=chunk, tokens=at.tokens + at.pending, pending=(), logits=logits[0])

    def logits(self, at: Cursor) -> Cursor:
        """A cursor whose `logits` follow all its tokens. Raises PromptError when there are none."""
        at = self.flush(at)
        if at.logits is None:
            if not at.tokens:
                raise PromptError("there is nothing to continue: give a prompt")
            chunk = self.backend.rewind(at.chunk, len(at.tokens) - 1)
            at = self.flush(at._replace(chunk=chunk, tokens=at.tokens[:-1], pending=at.tokens[-1:]))
        return at

    def append(self, at: Cursor, ids: Sequence[int], head: Sequence[int] = ()) -> Cursor:
        """Add tokens; where they cross the chunk's end the turn is cut there. `head` begins each further chunk."""
        ids = tuple(ids)
        while ids:
            room = self.size - at.filled
            if room == 0:
                at = self.cut(at, head)
                continue
            at = at._replace(pending=at.pending + ids[:room], seen=at.seen + len(ids[:room]))
            ids = ids[room:]
        return at

    def commit(self, at: Cursor, length: int | None = None) -> Cursor:
        """End the chunk after `length` tokens (default: all). Tokens after that are gone from the window: the caller feeds them again."""
        at = self.flush(at)
        length = len(at.tokens) if length is None else length
        if length == 0:
            return at._replace(chunk=None, tokens=(), logits=None, turn=0)
        memory = self.backend.commit(self.backend.rewind(at.chunk, length))
        self.on_commit(memory.chunks, length)
        return at._replace(memory=memory, chunk=None, tokens=(), logits=None, turn=0)

    def cut(self, at: Cursor, head: Sequence[int] = ()) -> Cursor:
        """End a full chunk in mid-turn: the next begins with `head` and the last `overlap` tokens."""
        at = self.flush(at)
        tail = at.tokens[len(at.tokens) - min(self.overlap, len(at.tokens)) :]
        return self.commit(at)._replace(pending=tuple(head) + tail)

    def move(self, at: Cursor, turn: Sequence[int]) -> Cursor:
        """End the chunk where the current turn began and start the next one with the whole turn, given as the tokens it has there."""
        at = self.commit(at, at.turn)
        return at._replace(pending=tuple(turn))
