"""Answering in a window beside the conversation's, from what was said earlier.

Such a window opens with a recall's keys and values, reads a memory that was never written, quotes a passage or two and then the message. Passages that
may tell what is asked for are read each by itself, the nearest first; where such a reading says that this one does not tell it, nothing is answered from it.
Reading ends where no other could come along. The window is left when the answer ends. Nothing of it is kept: a session file holds what it always held. Knows cursors and a recall, no transcript.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from ...models.errors import PromptError
from ...models.recall import SURE, Recall
from ..backend import Backend
from .cursor import Cursor
from .recalling import Passage
from .saying import NOTHING, Text, first_tokens
from .windows import Windows

SIZE = 1024  # positions of such a window
ROOM = 64  # of them for an answer at least
NO_WORDS: Mapping[int, str] = MappingProxyType({})
Turn = Callable[[str], Sequence[int]]


class Side:
    """A window beside the conversation's, never written in a memory. at: where it stands; feeder: what feeds it; prompt: tokens that are answered;
    found: what is in them; given: what the answer begins with."""

    def __init__(self, feeder: Windows, at: Cursor, prompt: int, found: list[Passage]):
        self.feeder, self.at, self.prompt, self.found = feeder, at, prompt, found
        self.given = NOTHING

    @classmethod
    def opened(
        cls, backend: Backend, recall: Recall, ids: Sequence[int], found: list[Passage], on_feed: Callable[[int], None] | None = None
    ) -> "Side | None":
        """A window with the recall's opening and then `ids`, which quote `found`; None where they leave no room for an answer."""
        p = recall.opening.positions
        size = min(SIZE, backend.longest)
        if p + len(ids) + ROOM > size:
            return None
        feeder = _Beside(backend, size, 0, on_feed=on_feed)
        at = feeder.new()._replace(tokens=(0,) * p, pending=tuple(ids), carried=size - 1, opening=recall.opening, starts=(p,))
        return cls(feeder, at, len(ids), found)

    def odds(self, unsaid: int) -> float:
        """The logarithm of how much likelier the answer begins with anything but token `unsaid`. Reads the window."""
        self.at = self.feeder.logits(self.at)
        assert self.at.logits is not None
        logits = np.array(self.at.logits, np.float64)  # (v,)
        own, logits[unsaid] = logits[unsaid], -np.inf
        most = logits.max()
        return float(most + np.log(np.exp(logits - most).sum()) - own)

    def saying(self, unsaid: int) -> "Side":
        """The same window, in which the answer does not begin with token `unsaid`. Reads the window."""
        self.at = self.feeder.logits(self.at)
        logits = np.array(self.at.logits)  # (v,)
        logits[unsaid] = -np.inf
        self.at = self.at._replace(logits=logits)
        return self

    def beginning(self, words: Sequence[str], text: Text) -> "Side":
        """The same window, in which the answer says one of `words`, likeliest first. Reads the window, and on."""
        self.at = self.feeder.logits(self.at)
        assert self.at.logits is not None
        room = self.feeder.size - self.at.filled
        self.given = first_tokens(self.feeder.backend, self.at.window, self.at.logits, words, text, room)
        self.at = self.at._replace(window=self.feeder.backend.rewind(self.at.window, self.at.filled))
        return self


def answering(
    backend: Backend, recall: Recall, unsaid: int, turn: Turn, passages: Sequence[Passage], near: dict[int, float], message: str,
    on_feed: Callable[[int], None] | None = None, words: Mapping[int, str] = NO_WORDS, text: Text | None = None,
    sure: Collection[int] = (),
) -> Side | None:  # fmt: skip
    """The window in which `message` is answered, from those of `passages` that tell what it asks for; None where none does, or none fits.

    unsaid: the first token of the recall's own word for that. turn: a user's text to the ids of a turn. near: places of the passages that may tell it,
    in the order they were said, and how near each is. on_feed: hears of each forward pass. words: of passages, that the
    answer is to say where it is made from them, by `text`. sure: those that tell it whatever the model makes of them.
    """

    def quoting(places: Sequence[int]) -> Side | None:
        found = [passages[i] for i in places]
        return Side.opened(backend, recall, turn(recall.message([p.whole for p in found], message)), found, on_feed)

    odds: dict[int, float] = {}
    best, kept = -np.inf, (-1, None)  # type: float, tuple[int, Side | None]
    alike = math.log(recall.share) if recall.share else -math.inf
    for i in sorted(near, key=lambda i: -near[i]):
        if recall.weight(near[i], SURE) < best + alike:
            break  # whatever reading says, it does not come along
        if (side := quoting([i])) is None:
            continue
        odds[i] = side.odds(unsaid)
        if i in sure:
            odds[i] = max(odds[i], recall.doubt)
        if odds[i] >= recall.doubt and (weight := recall.weight(near[i], odds[i])) > best:
            best, kept = weight, (i, side)
    read = sorted(odds)
    chosen = [read[k] for k in recall.choice([near[i] for i in read], [odds[i] for i in read])]
    for first in range(len(chosen)):
        side = kept[1] if chosen[first:] == [kept[0]] else quoting(chosen[first:])
        if side is not None:
            side = side.saying(unsaid)
            likeliest = sorted(chosen[first:], key=lambda i: -recall.weight(near[i], odds[i]))
            found = [words[i] for i in likeliest if i in words]
            return side if text is None or not found else side.beginning(found, text)
    return None


class _Beside(Windows):
    """A window that is never left: where it is full the answer ends."""

    def room(self, at: Cursor, prompt: Sequence[int], answer: Sequence[int], head: Sequence[int]) -> Cursor:
        raise FullError(f"the window of {self.size} tokens in which this is answered is full")


class FullError(PromptError):
    """An answer from passages has filled its window."""
