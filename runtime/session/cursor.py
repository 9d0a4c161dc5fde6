"""Where a session stands: the memory, the window, and how tokens get in. Knows ids and a backend, neither text nor files.

A Cursor is replaced whole, never edited: an interrupt at any moment leaves the old one or the new one. When a window is folded, and what goes on into
the next one, is a rule's business: windows.py for cell gated, chunks.py for cell released.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ...models.errors import PromptError
from ..backend import Backend, MemoryState


class Cursor(NamedTuple):
    """memory: as it stood when the window began. window: the backend's, or None until it must be (re)run. tokens: fed so far; pending: fed next.

    logits (v,) after `tokens`. folds: lengths at which the window is folded, ascending. carried: tokens at the front that are in the memory already.
    starts: where the window's whole turns begin in tokens + pending, the current one last. seen: tokens in all, each counted once. draws: random
    numbers used. turns: messages in the transcript.
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
        return self._replace(window=None, logits=None)


class Feeder:
    """Feeds a backend's windows of `size` positions. Holds no position: a cursor goes in and comes out.

    `overlap` tokens of a text that is cut are repeated in the next window. `on_write(tokens, written)` hears of tokens that entered the memory and how
    many it holds, `on_slide(carried)` of a window that was left and the tokens that went on, `on_feed(tokens)` of each forward pass.
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
    ):
        self.backend, self.size = backend, size
        if not 0 <= overlap <= self.size // 4:
            raise PromptError(f"overlap {overlap} must be from 0 to a quarter of the window ({self.size // 4})")
        self.overlap = overlap
        self.chunk = backend.config.memory.chunk
        self.on_write = on_write or (lambda tokens, written: None)
        self.on_slide = on_slide or (lambda carried: None)
        self.on_feed = on_feed or (lambda tokens: None)

    def new(self) -> Cursor:
        """A cursor with a memory that was never written."""
        return Cursor(self.backend.memory(self.backend.start(1, window=self.size)))

    def flush(self, at: Cursor) -> Cursor:
        """Feed what is pending, and fold where it is marked; re-run the window first if it is not there (after a restore, an undo, a fork).

        A window is also folded after a chunk of tokens without one: backends keep no more rows.
        """
        if at.window is not None and at.window.stale:
            at = at.at_rest()
        ids, folds = at.tokens + at.pending, set(at.folds)
        if not at.pending and ((at.window is not None and max(folds, default=0) <= at.window.folded) or not ids):
            return at
        window, logits = at.window, at.logits
        if window is None:
            window = self.backend.start(1, at.memory, self.size, at.carried)
        while True:
            here = window.length
            if here in folds and here > window.folded:
                new = here - window.folded
                window = self.backend.fold(window)
                if here > len(at.tokens) or at.window is not None:
                    self.on_write(new, self.backend.memory(window).written)
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
        return at._replace(window=window, tokens=ids, pending=(), logits=logits, folds=tuple(sorted(folds)))

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
