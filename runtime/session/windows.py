"""The rule of windows, cell gated: folds at turn ends, slides that carry whole turns over. Knows ids and where turns begin, neither text nor files.

A fold enters the rows of the tokens since the last one into the memory; the window goes on. A slide begins a new window with the head (what every
conversation begins with) and the last whole turns, which are in the memory already and are not written again. Everything older is in the memory alone.
"""

from collections.abc import Iterable, Sequence

from .cursor import Cursor, Feeder
from .ledger import moved


class Windows(Feeder):
    """What is kept free for an answer is an eighth of a window; what a slide carries, at most half of one."""

    @property
    def reserve(self) -> int:
        return self.size // 8

    def begin(self, at: Cursor, first: Sequence[int], later: Sequence[int], head: Sequence[int]) -> Cursor:
        """Add a turn's tokens: `first` in an empty window, else `later`, after a slide where it would leave too little room for an answer."""
        later = tuple(later)
        if at.filled and at.filled + len(later) + self.reserve > self.size:
            at = self.slide(at, head, self.size - self.reserve - len(later))
        began = at.filled
        ids = later if began else tuple(first)
        if not began and head and ids[: len(head)] == tuple(head):
            began = len(head)
        at = self.opened(at, began)._replace(starts=(*at.starts, began))
        return self.append(at, ids, head if len(ids) > self.size else ())

    def append(self, at: Cursor, ids: Iterable[int], head: Sequence[int] = ()) -> Cursor:
        """Add tokens; where the window is full it slides, with `head` and the last `overlap` tokens."""
        ids = tuple(ids)
        while ids:
            room = self.size - at.filled
            if room == 0:
                at = self.cut(at, head, self.overlap)
                continue
            at = at._replace(pending=at.pending + ids[:room], seen=at.seen + len(ids[:room]))
            ids = ids[room:]
        return at

    def room(self, at: Cursor, prompt: Sequence[int], answer: Sequence[int], head: Sequence[int]) -> Cursor:
        """The window is full in mid-answer: slide."""
        return self.slide(at, head, self.size - self.reserve)

    def close(self, at: Cursor, ids: Iterable[int], head: Sequence[int] = ()) -> Cursor:
        """A turn's end: its closing tokens, and a fold."""
        ids = tuple(ids)
        if at.filled + len(ids) > self.size:
            at = self.room(at, (), (), head)
        at = at._replace(pending=at.pending + ids, seen=at.seen + len(ids))
        return self.mark(at)

    def before_document(self, at: Cursor, tokens: int, head: Sequence[int]) -> Cursor:
        """Make ready for a text of so many tokens: a window that it would overflow slides first, so that it is cut as rarely as may be."""
        return self.slide(at, head, self.size - self.reserve - tokens) if at.filled and at.filled + tokens > self.size else at

    def ahead(self, at: Cursor, head: Sequence[int]) -> Cursor:
        """Between turns: slide and read what is carried over, where the next turn would probably have to (less than a quarter of a window is free)."""
        if at.filled + 2 * self.reserve <= self.size:
            return at
        return self.flush(self.slide(at, head, self.size // 2))

    def mark(self, at: Cursor) -> Cursor:
        """Fold here, when tokens are next fed."""
        last = max(at.folds, default=at.carried)
        return at._replace(folds=(*at.folds, at.filled)) if at.filled > last else at

    def slide(self, at: Cursor, head: Sequence[int], most: int) -> Cursor:
        """Begin a new window with `head` and the last whole turns, at most half a window and `most` tokens in all.

        A last turn longer than half a window goes on whole if `most` allows it, else only its end does.
        """
        half = min(most, self.size // 2)
        longest = [s for s in at.starts if s > 0 and len(head) + at.filled - s <= half]
        if not longest and at.starts and at.starts[-1] > 0 and len(head) + at.filled - at.starts[-1] <= most:
            longest = [at.starts[-1]]
        if not longest:
            return self.cut(at, head, half - len(head))
        return self._next(at, head, longest[0], tuple(s for s in at.starts if s >= longest[0]))

    def cut(self, at: Cursor, head: Sequence[int], tail: int) -> Cursor:
        """Begin a new window with `head` and the last `tail` tokens, wherever turns begin."""
        return self._next(at, head, max(0, at.filled - max(0, tail)), ())

    def _next(self, at: Cursor, head: Sequence[int], begin: int, starts: tuple[int, ...]) -> Cursor:
        at = self.flush(self.mark(at))
        carried = (*head, *at.tokens[begin:])
        self.on_slide(len(carried))
        memory = at.memory if at.window is None else self.backend.memory(at.window)
        return at._replace(
            memory=memory, window=None, tokens=(), pending=carried, logits=None, folds=(), carried=len(carried),
            starts=tuple(s - begin + len(head) for s in starts), spans=moved(at.spans, begin, len(head)), ledger=at.noted(), held=None,
        )  # fmt: skip
