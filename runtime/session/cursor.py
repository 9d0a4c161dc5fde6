"""Where a session stands: the memory, the window, and how tokens get in. Knows ids and a backend, neither text nor files.

A Cursor is replaced whole, never edited: an interrupt at any moment leaves the old one or the new one. When a window is folded, and what goes on into
the next one, is a rule's business: windows.py for cell gated, chunks.py for cell released.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ...models.errors import PromptError
from ...models.opening import Opening
from ..backend import Backend, MemoryState
from .ledger import HEAD, Ledger, Spans, turns_of


class Cursor(NamedTuple):
    """memory: as it stood when the window began. window: the backend's, or None until it must be (re)run. tokens: fed so far; pending: fed next.

    logits (v,) after `tokens`. folds: lengths at which the window is folded, ascending. carried: tokens at the front that are in the memory already.
    starts: where the window's whole turns begin in tokens + pending, the current one last. seen: tokens in all, each counted once. draws: random
    numbers used. turns: messages in the transcript. number: of the last turn that began, counted from 1. spans: where the window's turns begin in
    tokens + pending, with their numbers. ledger: of `memory`; held: of the window's last fold. Both None where rows are not noted.
    opening: keys and values that stand in place of the window's first tokens, whose ids then say nothing; None for windows of tokens alone.
    """

    memory: MemoryState
    window: Any = None
    tokens: tuple[int, ...] = ()
    pending: tuple[int, ...] = ()
    logits: np.ndarray | None = None
    folds: tuple[int, ...] = ()
    carried: int = 0
    starts: tuple[int, ...] = ()
    seen: int = 0
    draws: int = 0
    turns: int = 0
    number: int = 0
    spans: Spans = ()
    ledger: Ledger | None = None
    held: Ledger | None = None
    opening: Opening | None = None

    @property
    def filled(self) -> int:
        """Positions of the window that are taken, fed or not."""
        return len(self.tokens) + len(self.pending)

    @property
    def written(self) -> int:
        """Tokens in the memory once what is marked for a fold is folded."""
        return self.memory.written + max(0, max(self.folds, default=0) - self.carried)

    def at_rest(self) -> "Cursor":
        """The same point without anything that can be recomputed: what snapshots keep."""
        return self._replace(window=None, logits=None, held=None)

    def begins(self, head: int = 0) -> "Cursor":
        """A turn begins after what is there; in an empty window after `head` tokens that belong to every window."""
        number, at = self.number + 1, self.filled or head
        spans = self.spans if self.filled else ((0, HEAD),) if head else ()
        return self._replace(number=number, spans=(*(s for s in spans if s[0] < at), (at, number)))

    def noted(self) -> Ledger | None:
        """The ledger as of the last fold that was made."""
        return self.ledger if self.window is None else self.held


class Feeder:
    """Feeds a backend's windows of `size` positions. Holds no position: a cursor goes in and comes out.

    `overlap` tokens of a text that is cut are repeated in the next window. `on_write(tokens, written)` hears of tokens that entered the memory and how
    many it holds, `on_slide(carried)` of a window that was left and the tokens that went on, `on_feed(tokens)` of each forward pass. `noting`: keep a
    ledger of whose tokens the memory's rows hold (cell gated). `begun(tokens)`, which may be set: a window of a memory that was never written in which the
    first of these tokens, but not all, are fed already, the caller's own; or None.
    Raises PromptError for an overlap above a quarter of the window.
    """

    def __init__(
        self,
        backend: Backend,
        size: int,
        overlap: int,
        on_write: Callable[[int, int], None] | None = None,
        on_slide: Callable[[int], None] | None = None,
        on_feed: Callable[[int], None] | None = None,
        noting: bool = False,
    ):
        self.backend, self.size = backend, size
        if not 0 <= overlap <= self.size // 4:
            raise PromptError(f"overlap {overlap} must be from 0 to a quarter of the window ({self.size // 4})")
        self.overlap = overlap
        self.chunk = backend.config.memory.chunk
        self.noting = noting
        self.on_write = on_write or (lambda tokens, written: None)
        self.on_slide = on_slide or (lambda carried: None)
        self.on_feed = on_feed or (lambda tokens: None)
        self.begun: Callable[[tuple[int, ...]], Any] = lambda tokens: None

    def new(self) -> Cursor:
        """A cursor with a memory that was never written."""
        empty = Ledger.empty(self.backend.config.memory.slots) if self.noting else None
        return Cursor(self.backend.memory(self.backend.start(1, window=self.size)), ledger=empty)

    def opened(self, at: Cursor, head: int = 0) -> Cursor:
        """A turn begins here, after `head` tokens of every window in an empty one."""
        return at.begins(head)

    def flush(self, at: Cursor) -> Cursor:
        """Feed what is pending, and fold where it is marked; re-run the window first if it is not there (after a restore, an undo, a fork).

        A window is also folded after a chunk of tokens without one: backends keep no more rows.
        """
        if at.window is not None and at.window.stale:
            at = at.at_rest()
        ids, folds = at.tokens + at.pending, set(at.folds)
        if not at.pending and ((at.window is not None and max(folds, default=0) <= at.window.folded) or not ids):
            return at
        window, logits, held, folding = at.window, at.logits, at.noted(), None
        if window is None:
            window = self._begun(at, ids)
        while True:
            here = window.length
            if here in folds and here > window.folded:
                folding = _Folding.before(self.backend, at, window, held)
                window = self.backend.fold(window)
                if here > len(at.tokens) or at.window is not None:
                    self.on_write(folding.size, folding.first + folding.size)
            if here == len(ids):
                break
            if here >= at.carried and here - window.folded == self.chunk:
                folds.add(here)
                continue
            stops = [f for f in folds if f > here]
            if here < at.carried:
                stops.append(at.carried)
            else:
                stops.append(window.folded + self.chunk)
            end = min(len(ids), *stops)
            given, window = self.backend.extend(np.asarray(ids[here:end], dtype=np.int64), window)  # (1, v)
            self.on_feed(end - here)
            logits = given[0]
            if folding is not None:  # only now: a backend may make a fold in the call after it
                held, folding = folding.noted(self.backend, window, ids), None
        if folding is not None:
            held = folding.noted(self.backend, window, ids)
        return at._replace(window=window, tokens=ids, pending=(), logits=logits, folds=tuple(sorted(folds)), held=held)

    def _begun(self, at: Cursor, ids: tuple[int, ...]) -> Any:
        """A window for the cursor's tokens `ids`, with some of them in it or none."""
        if not at.memory.written and not at.carried and at.opening is None and (window := self.begun(ids)) is not None:
            return window
        more = {} if at.opening is None else {"opening": at.opening}
        return self.backend.start(1, at.memory, self.size, at.carried, **more)

    def logits(self, at: Cursor) -> Cursor:
        """A cursor whose `logits` follow all its tokens. Raises PromptError when there are none."""
        at = self.flush(at)
        if at.logits is None:
            if not at.tokens:
                raise PromptError("there is nothing to continue: give a prompt")
            if at.window.folded == len(at.tokens) > at.carried:  # the last token is in the memory: it cannot be fed again
                return self.flush(at.at_rest())
            window = self.backend.rewind(at.window, len(at.tokens) - 1)
            at = self.flush(at._replace(window=window, tokens=at.tokens[:-1], pending=at.tokens[-1:]))
        return at


class _Folding(NamedTuple):
    """A fold between being asked for and being noted. size tokens from position `begin` on, the first of them number `first`.

    ledger and rows (l, 1, size, d), those of topics not among them: before the fold; None where rows are not noted. turns (size,).
    """

    begin: int
    size: int
    first: int
    turns: np.ndarray
    ledger: Ledger | None
    rows: np.ndarray | None

    @classmethod
    def before(cls, backend: Backend, at: Cursor, window: Any, ledger: Ledger | None) -> "_Folding":
        begin, count = window.folded, window.length - window.folded
        first = at.memory.written + begin - at.carried
        rows = None if ledger is None else backend.rows(window, first, count)[: backend.config.memory.memories]
        return cls(begin, count, first, turns_of(at.spans, begin, begin + count), ledger, rows)

    def noted(self, backend: Backend, window: Any, ids: tuple[int, ...]) -> Ledger | None:
        """The ledger after the fold."""
        if self.ledger is None or self.rows is None:
            return None
        after = backend.rows(window, self.first, self.size)[: len(self.rows)]
        tokens = ids[self.begin : self.begin + self.size]
        return self.ledger.folded(self.first, tokens, self.turns, self.rows[:, 0], after[:, 0], backend.config.rms_norm_eps)
