"""Streams of chunks for a memory on a finished chat model: a user tells things, talks of others, and asks later.

Chunks come from two pools, with facts and without, so that what the layers below the first memory compute for them can be kept. Knows
text, tokens and chunks; the model is others' business.
"""

import random
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from ..tasks.fillers import exchanges
from ..tasks.recall import THANKS, Told, reply
from ..tasks.varied import Varied

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100
UNKNOWN = 0.4  # of what no memory helps with: questions for facts nobody told
ORDINARY_TOKENS = 40
Encode = Callable[[str], list[int]]
Rendered = Callable[[Callable[[str], str], str], list[int]]


@dataclass
class Piece:
    """One chunk. ids; quiet: how strongly each token should stay unwritten (0 for facts); told: its facts. hidden: kept activations (t, d)."""

    ids: list[int]
    quiet: list[float]
    told: list[Told] = field(default_factory=list)
    hidden: "Tensor | None" = None


@dataclass(frozen=True)
class Asked:
    """A question in a fresh chunk. targets: next-token ids, -100 where none; weights: of each target; ordinary: no fact is asked for."""

    ids: list[int]
    targets: list[int]
    weights: list[float]
    value_at: int
    ordinary: bool


class Talks:
    """Draws pieces and questions. wrap(role, content): a message as the chat template puts it after others; opening: what an answer begins
    with; head: what begins every chunk. headed: whether questions begin with it too.

    encode: ids of a text that may hold the template's marks; rendered(render, said): of `render(said)`, in which `said` is only text; plain:
    of a text that is only that. begin: ids that a plain text begins with. size: tokens of a piece, at most. others: dialogues, each a list of
    (role, content). books: plain paragraphs. varied: what facts are drawn from. answers: questions that need no memory, with the backbone's
    own answers. unknown: questions for facts, with what the backbone answers when nobody told it.
    """

    def __init__(
        self,
        encode: Encode,
        head: str,
        wrap: Callable[[str, str], str],
        opening: str,
        size: int,
        others: Sequence[Sequence[tuple[str, str]]],
        books: Sequence[str],
        varied: Varied,
        answers: Sequence[tuple[str, str]] = (),
        unknown: Sequence[tuple[Told, str, str]] = (),
        rendered: Rendered | None = None,
        plain: Encode | None = None,
        begin: Sequence[int] = (),
    ):
        self.encode, self.size, self.others, self.books = encode, size, others, books
        self.varied, self.answers, self.unknown = varied, answers, unknown
        self.wrap, self.opening = wrap, opening
        self.rendered = rendered or (lambda render, said: encode(render(said)))
        self.plain, self.begin = plain or encode, tuple(begin)
        self.head_text, self.head = head, encode(head)
        self.headed = True

    def _turn(self, role: str, content: str) -> list[int]:
        return self.rendered(lambda said: self.wrap(role, said), content)

    def _talk(self, rng: random.Random) -> Iterator[tuple[str, str]]:
        """Endless turns without facts, from a dialogue or from the project's own small talk."""
        while True:
            if rng.random() < 0.35 or not self.others:
                own = exchanges(rng, "train")
                for _ in range(rng.randint(1, 3)):
                    said, answered = next(own)
                    yield "user", said
                    yield "assistant", answered
            else:
                turns = rng.choice(self.others)
                start = rng.randrange(0, max(1, len(turns) - 4), 2)
                yield from turns[start : start + rng.choice((2, 4, 6))]

    def piece(self, rng: random.Random, facts: int) -> Piece:
        """A chunk with `facts` facts (0: none) of a random length up to `size` tokens."""
        limit = rng.randint(self.size // 2, self.size)
        if not facts and self.books and rng.random() < 0.25:
            text = rng.choice(self.books)
            ids = ([] if rng.random() < 0.5 else list(self.head)) + self.plain(text)
            return Piece(ids[:limit], [1.0] * len(ids[:limit]))
        ids = list(self.head) if rng.random() < 0.85 else []
        quiet = [1.0] * len(ids)
        told: list[Told] = []
        while len(told) < facts:
            fact = self.varied.draw(rng)
            if all((t.kind, t.other) != (fact.kind, fact.other) for t in told):
                told.append(fact)
        pending = list(told)
        talk = self._talk(rng)
        while len(ids) < limit:
            if pending and (rng.random() < 0.6 or len(ids) > limit - 30 * len(pending)):
                group = [pending.pop() for _ in range(min(len(pending), rng.choice((1, 1, 2))))]
                text = " ".join(self.varied.say(rng, t) for t in group)
                new = self._turn("user", text)
                ids += new
                quiet += [0.0] * len(new)
                new = self._turn("assistant", rng.choice(THANKS))
                ids += new
                quiet += [1.0] * len(new)
            else:
                role, content = next(talk)
                new = self._turn(role, content)
                if len(ids) + len(new) > limit and not pending and told:
                    break
                ids += new
                quiet += [0.4 if role == "user" else 1.0] * len(new)
        if pending:
            told = [t for t in told if t not in pending]
        return Piece(ids[: self.size], quiet[: self.size], [t for t in told if self._inside(ids[: self.size], t)])

    def passage(self, rng: random.Random, pieces: int, tokens: int) -> tuple[list[Piece], Asked]:
        """Full chunks of a book (or stories) in a row, and the `tokens` tokens that come next: nothing in them needs a memory."""
        ids: list[int] = list(self.begin)
        at, wanted = rng.randrange(len(self.books)), pieces * self.size + tokens
        while len(ids) < wanted:
            ids += self.plain(self.books[at % len(self.books)] + "\n")
            at += 1
        cuts = [ids[i * self.size : (i + 1) * self.size] for i in range(pieces)]
        return [Piece(cut, [1.0] * len(cut)) for cut in cuts], _read_on(ids[pieces * self.size : wanted], 0)

    def _inside(self, ids: list[int], told: Told) -> bool:
        """Whether the fact's value was not cut off at the chunk's end."""
        begun = told.value[0].upper() + told.value[1:]
        for text in (" " + told.value, told.value, " " + begun, begun):
            want = self.encode(text)
            if any(ids[i : i + len(want)] == want for i in range(len(ids) - len(want) + 1)):
                return True
        return False

    def question(self, rng: random.Random, told: Told) -> Asked:
        """The question for a fact, as a turn of a fresh chunk, and its answer."""
        return self._asked(self.varied.ask(rng, told), reply(told), told.value, self.headed)

    def ordinary(self, rng: random.Random, known: Container[str]) -> Asked:
        """Something that no memory helps with: the backbone's own answer, a passage of a book, an exchange, or a question for a fact of a kind
        that was not told. known: the kinds that were. Without the last, a question's form alone would open the memory."""
        if self.unknown and rng.random() < UNKNOWN:
            told, question, answer = rng.choice(self.unknown)
            if told.kind not in known:
                return self._asked(question, answer, "", self.headed)
        roll = rng.random()
        if self.answers and roll < 0.5:
            return self._asked(*rng.choice(self.answers), "", self.headed)
        if self.books and roll < 0.8:
            head = self.head if self.headed else []
            body = self.plain(rng.choice(self.books))[: min(ORDINARY_TOKENS, self.size - len(head))]
            return _read_on([*head, *body], max(0, len(head) - 1))
        if self.others and rng.random() < 0.5:
            turns = rng.choice(self.others)
            pair = next(((a[1], b[1]) for a, b in pairwise(turns) if (a[0], b[0]) == ("user", "assistant")), None)
            if pair and sum(len(self.plain(text)) for text in pair) <= ORDINARY_TOKENS:
                return self._asked(*pair, "", self.headed)
        return self._asked(*next(exchanges(rng, "train")), "", self.headed)

    def _asked(self, question: str, answer: str, value: str, headed: bool = True) -> Asked:
        first = self.head_text if headed else ""
        head = self.rendered(lambda said: first + self.wrap("user", said) + self.opening, question)
        opening, text = self.encode(self.opening), self.wrap("assistant", answer)
        body = self._turn("assistant", answer)
        if body[: len(opening)] == opening:
            body = body[len(opening) :]
        else:  # the opening's last token took a part of the answer with it
            body = self.rendered(lambda said: self.wrap("assistant", said)[len(self.opening) :], answer)
        blank = self.encode(text[len(text.rstrip()) :])  # what a template puts between turns is nobody's to say
        if blank and body[-len(blank) :] == blank:
            body = body[: -len(blank)]
        ids = [*head, *body][: self.size]
        targets = [IGNORED] * (len(head) - 1) + body + [IGNORED]
        weights = [0.0] * (len(head) - 1) + [1.0] * len(body) + [0.0]
        at = -1
        if value:
            for lead in (" ", ""):
                want = self.encode(lead + value)
                found = [i for i in range(len(body)) if body[i : i + len(want)] == want]
                if found:
                    at = len(head) - 1 + found[0]
                    weights[at : at + len(want)] = [3.0] * len(want)
                    break
        return Asked(ids, targets[: len(ids)], weights[: len(ids)], at, not value)


def _read_on(ids: list[int], before: int) -> Asked:
    """Plain text to be predicted, its first `before` targets not."""
    free = len(ids) - 1 - before
    return Asked(ids, [IGNORED] * before + ids[before + 1 :] + [IGNORED], [0.0] * before + [1.0] * free + [0.0], -1, True)


def padded(rows: Sequence[Sequence[float]], fill: float, dtype: type) -> np.ndarray:
    """Rows of unequal lengths as one array (rows, longest), filled up at the end."""
    out: np.ndarray = np.full((len(rows), max(len(r) for r in rows)), fill, dtype)
    for i, r in enumerate(rows):
        out[i, : len(r)] = r
    return out
