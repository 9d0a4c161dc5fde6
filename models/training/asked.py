"""Streams for comparing memories on BABILong's tasks: facts alone or hidden in books, chunk by chunk, questions, and nothing else to learn from.

bAbI's own stories ask what their file asks, where it asks it; those of tasks 1, 2, 3 and 5 are half the project's own, and asked at any border. Knows text,
tokens and chunks; the models, which all get the same batches, are others' business.
Axes: b streams, c chunks, t positions of a chunk, q questions of a stream, s positions of a question.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..tasks import babi
from ..tasks.fillers import sentences
from ..tasks.world import Question, World, story
from .facts import FACTS_IN_BOOK, FACTS_MOST, OTHER_TASK_SHARE, REAL_SHARE, TOKENS_A_FACT
from .speech import Speech
from .stories import IGNORED

OWN = ("qa1", "qa2", "qa3", "qa5")  # tasks whose stories can be made and asked about at any point
ASKED_SHARE = 0.5  # of the places where a story of another task asks
FILLER_SHARE = 0.15


@dataclass(frozen=True)
class Asked:
    """Questions after one chunk. streams: those that are asked something, (b',) of the batch's b. ids, targets (b', q, s) int64, IGNORED where no answer
    is; tasks (b', q), "" where there is none."""

    streams: list[int]
    ids: np.ndarray
    targets: np.ndarray
    tasks: list[list[str]]


@dataclass(frozen=True)
class Batch:
    """ids (b, c, t) int64; lengths (b, c), 0 for empty chunks in front; asked: per chunk, or None."""

    ids: np.ndarray
    lengths: np.ndarray
    asked: list[Asked | None]


@dataclass
class Chunk:
    """Tokens, and what is asked after them."""

    ids: list[int]
    questions: list[Question]


class AskedStreams(Speech):
    """Draws batches. encode: ids of a text; size: T; told: bAbI's stories by task; book: sentences of novels; tasks: those that are drawn, evenly.

    Raises ValueError for a task without stories that is none of OWN.
    """

    def __init__(self, encode: Callable[[str], list[int]], size: int, told: Mapping[str, Sequence[babi.Story]], book: Sequence[str], tasks: Sequence[str]):
        super().__init__(encode)
        for task in tasks:
            if task not in OWN and not told.get(task):
                raise ValueError(f"no stories of {task}")
        self.size, self.told, self.book, self.tasks = size, told, book, tuple(tasks)
        self.room = size - 1 - len(self.ok)

    def stream(self, rng: random.Random, chunks: int, asked: int, in_book: bool) -> list[Chunk]:
        """One stream of at least one chunk and at most `chunks`, with up to `asked` questions after each."""
        task = rng.choice(self.tasks)
        share = rng.uniform(*FACTS_IN_BOOK) if in_book else 1.0
        facts, given = self._story(rng, task, min(FACTS_MOST, max(2, int(chunks * self.room / TOKENS_A_FACT * share))))
        text = self._text(rng, chunks * (self.room - 4) - sum(len(self.tokens(f)) for f in facts)) if in_book else []
        gaps = sorted(rng.randint(0, len(text)) for _ in facts)
        parts: list[tuple[str, list[Question] | None]] = []  # a fact comes with what is asked after it
        at = 0
        for i in range(len(text) + 1):
            while at < len(facts) and gaps[at] == i:
                parts.append((facts[at], given[at]))
                at += 1
            parts += [(sentence, None) for sentence in text[i : i + 1]]
        return self._chunks(rng, parts, task, asked)[:chunks]

    def _story(self, rng: random.Random, task: str, most: int) -> tuple[list[str], list[list[Question]]]:
        """Facts, and what a file asks after each."""
        if task in OWN and (not self.told.get(task) or rng.random() >= REAL_SHARE):
            made = story(rng, task, rng.randint(2, most))
            return made, [[] for _ in made]
        facts: list[str] = []
        given: list[list[Question]] = []
        for line in rng.choice(self.told[task]).lines:
            if isinstance(line, babi.Question):
                if given and task not in OWN:
                    given[-1].append(Question(line.text, line.answer, task))
            elif len(facts) == most:
                break
            else:
                facts.append(line.text)
                given.append([])
        return facts, given

    def _text(self, rng: random.Random, room: int) -> list[str]:
        out: list[str] = []
        for sentence in self._others(rng):
            room -= len(self.tokens(sentence))
            if room < 0:
                return out
            out.append(sentence)
        return out

    def _others(self, rng: random.Random) -> Iterator[str]:
        if rng.random() < FILLER_SHARE or not self.book:
            yield from sentences(rng, "train")
        at = rng.randrange(len(self.book))
        while True:
            yield self.book[at % len(self.book)]
            at += 1

    def _chunks(self, rng: random.Random, parts: Sequence[tuple[str, list[Question] | None]], task: str, asked: int) -> list[Chunk]:
        out: list[Chunk] = []
        world = World()
        ids = [self.user]
        places = [i for i, (_, given) in enumerate(parts) if given]
        chosen = {i for i in places if rng.random() < ASKED_SHARE} | set(places[-1:])

        def close(given: Sequence[Question] = ()) -> None:
            nonlocal ids
            out.append(Chunk(ids + self.ok, list(given) or self._questions(rng, world, task, asked)))
            ids = [self.user]

        for i, (sentence, given) in enumerate(parts):
            new = self.tokens(sentence)
            if len(ids) - 1 + len(new) > self.room and len(ids) > 1:
                close()
            while len(new) > self.room:
                ids, new = ids + new[: self.room], new[self.room :]
                close()
            ids = ids + new
            if given is not None and task in OWN:
                world.tell(sentence)
            if given and i in chosen:  # what is told next may be another answer
                close(given[:asked])
        if len(ids) > 1:
            close()
        return out

    def _questions(self, rng: random.Random, world: World, task: str, asked: int) -> list[Question]:
        found: list[Question] = []
        for _ in range(asked if task in OWN else 0):
            kind = rng.choice(("qa1", "qa2", "qa3")) if task in ("qa2", "qa3") and rng.random() < OTHER_TASK_SHARE else task
            question = world.questions(rng, kind) or (None if task == "qa5" else world.questions(rng, "qa1"))
            if question is not None:
                found.append(question)
        return found

    def batch(self, rng: random.Random, b: int, chunks: int, asked: int, books: float = 0.0, often: float = 1.0) -> Batch:
        """`b` streams of `chunks` chunks, shorter ones padded in front with empty chunks. books: share of streams in which a book stands between;
        often: share of chunks but the last after which something is asked."""
        ids = np.zeros((b, chunks, self.size), np.int64)
        lengths = np.zeros((b, chunks), np.int64)
        questions: list[dict[int, list[Question]]] = [{} for _ in range(chunks)]
        for i in range(b):
            stream = self.stream(rng, chunks, asked, rng.random() < books)
            for c, chunk in enumerate(stream, chunks - len(stream)):
                lengths[i, c] = len(chunk.ids)
                ids[i, c, : len(chunk.ids)] = chunk.ids
                if chunk.questions and (c == chunks - 1 or rng.random() < often):
                    questions[c][i] = chunk.questions
        return Batch(ids, lengths, [self._asked(q) if q else None for q in questions])

    def _asked(self, questions: Mapping[int, Sequence[Question]]) -> Asked:
        streams = sorted(questions)
        exchanges = [[self.exchange(q) for q in questions[i]] for i in streams]
        most, longest = max(map(len, exchanges)), max(len(ids) for e in exchanges for ids, _ in e)
        ids = np.zeros((len(streams), most, longest), np.int64)
        targets = np.full(ids.shape, IGNORED)
        for i, row in enumerate(exchanges):
            for k, (sequence, begin) in enumerate(row):
                ids[i, k, : len(sequence)] = sequence
                targets[i, k, begin - 1 : len(sequence) - 1] = sequence[begin:]
        tasks = [[questions[i][k].task if k < len(questions[i]) else "" for k in range(most)] for i in streams]
        return Asked(streams, ids, targets, tasks)
