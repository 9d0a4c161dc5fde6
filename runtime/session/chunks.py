"""The rule of chunks, cell released: what leaves the window is written, and a turn is moved whole into the next chunk. Knows ids, neither text nor files.

This cell reads its own rows inside the window, so nothing can be folded in it: a window is a chunk, and its end is a commit.
"""

from collections.abc import Iterable, Sequence

from .cursor import Cursor, Feeder


class Chunks(Feeder):
    """What is kept free for an answer is an eighth of a chunk."""

    def opened(self, at: Cursor, head: int = 0) -> Cursor:
        """The turn is counted; whose the window's tokens are is not noted, as rows of this cell are no one turn's."""
        return at._replace(number=at.number + 1)

    def begin(self, at: Cursor, first: Sequence[int], later: Sequence[int], head: Sequence[int]) -> Cursor:
        """Add a turn's tokens: `later` where it fits with an eighth of a chunk to spare for the answer, else `first` in a new chunk."""
        later = tuple(later)
        if at.filled and at.filled + len(later) + self.size // 8 > self.size:
            at = self.commit(at)
        at = self._repeated(at, head)
        ids = later if at.filled else tuple(first)
        at = self.opened(at)._replace(starts=(at.filled,))
        return self.append(at, ids, head if len(ids) > self.size else ())

    def append(self, at: Cursor, ids: Iterable[int], head: Sequence[int] = ()) -> Cursor:
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

    def room(self, at: Cursor, prompt: Sequence[int], answer: Sequence[int], head: Sequence[int]) -> Cursor:
        """The chunk is full in mid-answer: move the whole turn to a new chunk if it will fit there, else cut it."""
        moved = (*prompt, *answer)
        if prompt and at.starts and at.starts[-1] > 0 and len(moved) <= self.size - self.size // 8:
            return self.commit(at, at.starts[-1])._replace(pending=moved, starts=(0,))
        return self.cut(at, head if prompt else ())

    def close(self, at: Cursor, ids: Iterable[int], head: Sequence[int] = ()) -> Cursor:
        """A turn's closing tokens; left out where the chunk has no room for them, since it ends there anyway."""
        ids = tuple(ids)
        return at._replace(pending=at.pending + ids, seen=at.seen + len(ids)) if at.filled + len(ids) <= self.size else at

    def before_document(self, at: Cursor, tokens: int, head: Sequence[int]) -> Cursor:
        """Make ready for a text of so many tokens: a chunk that it would overflow ends here."""
        at = self.commit(at) if at.filled and at.filled + tokens > self.size else at
        return self._repeated(at, head)

    def commit(self, at: Cursor, length: int | None = None) -> Cursor:
        """End the chunk after `length` tokens (default: all). Tokens after that are gone from the window: the caller feeds them again."""
        at = self.flush(at)
        length = len(at.tokens) if length is None else length
        if length == 0:
            return at._replace(window=None, tokens=(), logits=None, starts=())
        memory = self.backend.commit(self.backend.rewind(at.window, length))
        self.on_write(length, memory.written)
        return at._replace(memory=memory, window=None, tokens=(), logits=None, starts=())

    def cut(self, at: Cursor, head: Sequence[int] = ()) -> Cursor:
        """End a full chunk in mid-turn: the next begins with `head` and the last `overlap` tokens."""
        at = self.flush(at)
        tail = at.tokens[len(at.tokens) - min(self.overlap, len(at.tokens)) :]
        return self.commit(at)._replace(pending=(*head, *tail))

    def _repeated(self, at: Cursor, head: Sequence[int]) -> Cursor:
        """A turn that begins a further chunk repeats the head: its tokens were counted before."""
        return at._replace(seen=at.seen - len(head)) if not at.filled and at.memory.written else at
