"""What was said earlier that a message may ask for: the passages of a transcript, and the nearest of them. Knows a recall and a transcript, no window."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ...models.errors import ModelFileError
from ...models.recall import RECORD, SURE, Encoder, Recall, as_read, nearness
from ...models.text.sentences import ASKS, PARTS, question_at_end
from .transcript import MESSAGE_COST, TURN_CHARS

TOKENS = 1 << 16  # of passages looked through, the newest
VECTORS = 512  # passages, the newest, whose vectors of the encoder are kept
ASKED = 32  # tokens of a question that is kept with its answer
SHORT, SAID = 16, 48  # tokens of a message that may be understood from the one before it, and of that one, at most
_READ = re.compile(r"\[read .*: \d+ tokens\]", re.DOTALL)  # what a transcript has in place of a document
Encode = Callable[[str], Sequence[int]]
Parts = tuple[tuple[str, tuple[int, ...]], ...]  # of a message: text and ids


class Passage(NamedTuple):
    """A message, or a part of a long one, that a person said. number: of its turn; ids: for the finder. before: what the model had asked, which it may answer,
    or where it is `after`, what the person had said just before; around: ids of both."""

    number: int
    text: str
    ids: tuple[int, ...]
    before: str = ""
    around: tuple[int, ...] = ()
    after: bool = False

    @property
    def whole(self) -> str:
        """What it says, with what it was said to."""
        return f"{self.before} {self.text}" if self.before else self.text


class Read(NamedTuple):
    """Of passages by their places: how near each is, its reading counted, in the order they were said; the words that were found in it; those of which the
    reader is sure."""

    near: dict[int, float]
    words: dict[int, str]
    sure: frozenset[int]


class _Seen(NamedTuple):
    """How texts of a transcript were encoded: parts of a message, ids of a passage with what it was said to or after, and what an answer asks."""

    parts: dict[str, Parts]
    around: dict[str, tuple[int, ...]]
    asks: dict[str, str]


class Recalling:
    """Finds passages for one session. encode: plain text to ids. Remembers how it encoded messages that are there, nothing else. unsaid: the token with which an answer
    begins where a passage does not tell what is asked for. Raises ModelFileError where the recall's word for that has none."""

    def __init__(self, recall: Recall, encode: Encode):
        self.recall, self._encode = recall, encode
        if not (unsaid := tuple(encode(recall.unsaid))):
            raise ModelFileError(f"{RECORD}: unsaid {recall.unsaid!r} has no tokens with this model's tokenizer: get the two files again")
        self.unsaid = unsaid[0]
        self._seen = _Seen({}, {}, {})
        self._vectors: dict[str, np.ndarray] = {}

    def passages(self, transcript: Sequence[dict[str, str]], numbers: Sequence[int]) -> list[Passage]:
        """What the user said, oldest first, of the newest TOKENS tokens; of passages with the same words, said to the same, the newest. A short message is there
        twice, by itself and after what was said before it: "no, half past nine" says nothing alone."""
        found: dict[tuple[str, str, bool], Passage] = {}
        left = TOKENS
        seen = _Seen({}, {}, {})
        for place in reversed(range(len(transcript))):
            message, number = transcript[place], numbers[place]
            if message["role"] != "user" or _READ.fullmatch(message["content"]):
                continue
            for n, (part, ids) in reversed(list(enumerate(parts := self._parts_of(message["content"], seen)))):
                before = ""
                if place and not n and transcript[place - 1]["role"] == "assistant":
                    answer = transcript[place - 1]["content"]
                    had_asked = self._seen.asks.get(answer)
                    before = seen.asks[answer] = self._asked(answer) if had_asked is None else had_asked
                made = [Passage(number, part, ids)]
                if before:
                    made = [self._around(made[0]._replace(before=before), seen)]
                elif self.recall.reader is not None and len(parts) == 1 and len(ids) <= SHORT and (before := self._earlier(transcript, numbers, place, seen)):
                    made.append(self._around(made[0]._replace(before=before, after=True), seen))
                left -= sum(len(p.around or p.ids) for p in made)
                if left < 0:
                    break
                for passage in reversed(made):
                    found.setdefault((passage.before, part, passage.after), passage)
            if left < 0:
                break
        self._seen = seen
        return list(reversed(found.values()))

    def _parts_of(self, text: str, seen: "_Seen") -> Parts:
        text = text[: TURN_CHARS + MESSAGE_COST]  # a transcript has none longer; a file may
        if text not in seen.parts:
            had = self._seen.parts.get(text)
            seen.parts[text] = self._parts(text) if had is None else had
        return seen.parts[text]

    def _around(self, passage: Passage, seen: "_Seen") -> Passage:
        whole = passage.whole
        seen.around[whole] = self._seen.around.get(whole) or self.ids(whole)[-self.recall.tokens :]
        return passage._replace(around=seen.around[whole])

    def _earlier(self, transcript: Sequence[dict[str, str]], numbers: Sequence[int], place: int, seen: "_Seen") -> str:
        """What the user said in the turn before, where that was something told of at most SAID tokens; else nothing."""
        at = next((i for i in range(place - 1, -1, -1) if transcript[i]["role"] == "user"), None)
        if at is None or numbers[at] + 1 < numbers[place] or _READ.fullmatch(transcript[at]["content"]):
            return ""
        parts = self._parts_of(transcript[at]["content"], seen)
        return parts[0][0] if len(parts) == 1 and len(parts[0][1]) <= SAID and not parts[0][0].endswith(ASKS) else ""

    def _asked(self, answer: str) -> str:
        """The question with which an answer of the model ends, where it does, of at most ASKED tokens; else nothing."""
        asked = question_at_end(answer, 8 * ASKED)
        return asked if len(self.ids(asked)) <= ASKED else ""

    def _parts(self, text: str) -> Parts:
        """The parts of a message that the finder reads: sentences put together as far as its tokens reach. Longer sentences are cut between words."""
        most = self.recall.tokens
        parts: list[str] = []
        if len(text) <= 8 * most and len(self.ids(whole := " ".join(text.split()))) <= most:
            parts, text = [whole] if whole else [], ""
        taken = most + 1
        for sentence in PARTS.split(text):
            for glue, piece in self._cut(sentence):
                size = len(self.ids(piece))
                if taken + size <= most:
                    parts[-1] += glue + piece
                    taken += size
                else:
                    parts.append(piece)
                    taken = size
        return tuple((part, ids) for part in parts if (ids := self.ids(part)))

    def _cut(self, sentence: str) -> Iterator[tuple[str, str]]:
        """Pieces of a sentence that each fit, with what stands before them: a blank, or nothing within a word."""
        words, at, glue = sentence.split(), 0, " " if sentence[:1].isspace() else ""
        while at < len(words):
            take = self._fitting(words[at : at + self.recall.tokens], " ")  # a word has one token at least
            piece = " ".join(words[at : at + take])
            while piece:
                some = len(piece) if take > 1 else self._fitting(piece[: self.recall.tokens], "")
                yield glue, piece[:some]
                glue, piece = "", piece[some:]
            at, glue = at + take, " "

    def _fitting(self, units: Sequence[str], glue: str) -> int:
        """How many of the first units the finder reads at once, about: one at least."""
        take, most = len(units), self.recall.tokens
        while take > 1 and (size := len(self.ids(glue.join(units[:take])))) > most:
            take = max(1, min(take - 1, take * most // size))
        return take

    def ids(self, text: str) -> tuple[int, ...]:
        """A text as the finder reads it."""
        return tuple(self._encode(as_read(text)))

    def nearest(self, message: str, passages: Sequence[Passage]) -> dict[int, float]:
        """Places of the passages that `message` may ask for, in the order they were said, and how near each is; none where it asks for nothing told.

        A passage of the same words is none: who asks again has told nothing by asking.
        """
        recall, ids = self.recall, self.ids(message)
        others = [i for i, p in enumerate(passages) if p.ids != ids]
        if not others or not 0 < len(ids) <= recall.tokens:
            return {}
        scores, nothing = recall.finder.scores(ids, [(passages[i].around or passages[i].ids)[: recall.tokens] for i in others])
        after = np.array([passages[i].after for i in others])  # (p,)
        if recall.encoder is not None and recall.nearest(scores, nothing):
            scores, nothing = self._again(recall.encoder, message, [passages[i].whole for i in others], scores), -np.inf
        kept = recall.nearest(np.where(after, -np.inf, scores), nothing)
        if kept:  # beside them those that are as near for what was said before
            also = [int(i) for i in np.flatnonzero(after & (scores >= scores[kept].min()) & (scores > -np.inf))]
            kept += sorted(also, key=lambda i: -float(scores[i]))[: len(kept)]
        return {others[i]: float(scores[i]) for i in sorted(kept) if scores[i] > -np.inf}

    def read(self, message: str, passages: Sequence[Passage], near: dict[int, float]) -> "Read":
        """Of the passages that are near, those in which a reader finds what `message` asks for, at most as many as an answer reads. Without a reader all, no words,
        and nothing sure."""
        reader = self.recall.reader
        if reader is None or not near:
            return Read(near, {}, frozenset())
        found = dict(zip(near, reader.read(message, [passages[i].text for i in near], [passages[i].before for i in near]), strict=True))
        told = {i: near[i] + reader.use.weight * min(f.odds, SURE) for i, f in found.items() if f.words and f.odds >= reader.use.doubt}
        likeliest: dict[tuple[int, str], int] = {}  # a message that is there twice is read once
        for i in sorted(told, key=lambda i: -told[i]):
            likeliest.setdefault((passages[i].number, passages[i].text), i)
        best = sorted([*likeliest.values()][: self.recall.read])
        return Read({i: told[i] for i in best}, {i: found[i].words for i in best}, frozenset(i for i in best if found[i].odds >= reader.use.sure))

    def _again(self, encoder: Encoder, message: str, texts: Sequence[str], scores: np.ndarray) -> np.ndarray:
        """The scores (p,) of passages together with what the encoder says of those that the finder likes best; the others are out. Keeps their vectors."""
        best = [int(i) for i in np.argsort(-scores, kind="stable")[: encoder.among]]
        new = [texts[i] for i in best if texts[i] not in self._vectors]
        asking, *made = encoder.vectors([message, *new])  # (t, d) each
        known = {**self._vectors, **dict(zip(new, made, strict=True))}
        self._vectors = {text: known[text] for text in texts[-VECTORS:] if text in known}
        both = np.full_like(scores, -np.inf)  # (p,)
        for i in best:
            both[i] = scores[i] + encoder.weight * nearness(asking, known[texts[i]])
        return both
