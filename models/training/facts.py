"""Streams for learning BABILong's tasks 1 to 5: facts alone or hidden in books, chunk by chunk, with what each fact says and leaves true.

Chunks are filled as evaluation fills them (tasks/babilong.py): whole sentences, the user's mark before, `Ok.` after. Half of the stories are the
project's own, the others bAbI's training part. Knows text, tokens and chunks; the model is others' business.

Axes: b streams, c chunks, t positions of a chunk, q questions of a stream, s positions of a question.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..tasks.fillers import sentences
from ..tasks.knowing import UNKNOWN, Known, Reader, Wanted, wanted
from ..tasks.world import OBJECTS, Question, World, story
from .speech import Speech
from .stories import IGNORED

WEIGHTS = {"qa1": 0.12, "qa2": 0.25, "qa3": 0.3, "qa4": 0.08, "qa5": 0.25}
REAL_SHARE = 0.4  # of stories from bAbI's files; qa4 always
OTHER_TASK_SHARE = 0.35  # of questions about things carried: where someone is, or another of these tasks
TOKENS_A_FACT = 6.3
FACTS_MOST = 110
TURNS_SHARE = 0.25  # of streams without a book in which sentences are messages of their own, several in a chunk
FACTS_IN_BOOK = (0.15, 0.6)  # share of a stream's room that facts may take where a book stands between

Given = Sequence[tuple[str, str]]


Row = tuple[int, int]  # chunk of the stream, place in it


class Fact(NamedTuple):
    """place: of its period. number: facts told with it. subject, thing, last: rows of the last fact in an earlier chunk about its subject, about its
    thing, and at all, or None."""

    place: int
    known: Known
    number: int
    subject: Row | None
    thing: Row | None
    last: Row | None


@dataclass
class Chunk:
    """ids; facts; what is asked afterwards, and the row that answers it."""

    ids: list[int]
    facts: list[Fact]
    questions: list[tuple[Question, Row]]


@dataclass
class Asked:
    """Questions after one chunk. streams: those that are asked something, (b',) of the batch's b. ids, targets (b', q, s), int64, IGNORED where no
    answer is; begins (b', q): the place before the answer's first token; wanted (b', q, Wanted) int64; sources (b', q, 2): chunk and place of the row that
    answers, -1 where there is none; tasks (b', q), "" where there is none."""

    streams: list[int]
    ids: np.ndarray
    targets: np.ndarray
    begins: np.ndarray
    wanted: np.ndarray
    sources: np.ndarray
    tasks: list[list[str]]


@dataclass
class Told:
    """Facts of one chunk, int64: streams, places (n,); known (n, Known and count); subject, thing, last (n, 2): chunk and place of the row of
    the last fact in an earlier chunk about the same subject, about the same thing, and at all, -1 where there is none."""

    streams: np.ndarray
    places: np.ndarray
    known: np.ndarray
    subject: np.ndarray
    thing: np.ndarray
    last: np.ndarray


@dataclass
class Batch:
    """ids (b, c, t) int64; lengths (b, c), 0 for empty chunks in front; ends (b, c, t) bool: periods of facts. told, asked: per chunk, asked or None.
    within, within_targets (b, t) int64: the last chunk once more, with a question in it where it has room for one; its `Ok.` is to be said, too."""

    ids: np.ndarray
    lengths: np.ndarray
    ends: np.ndarray
    told: list[Told]
    asked: list[Asked | None]
    within: np.ndarray
    within_targets: np.ndarray


class FactStreams(Speech):
    """Draws batches. encode: ids of a text; size: T; fixed: bAbI's stories (task, facts, questions); book: sentences of novels."""

    def __init__(
        self,
        encode: Callable[[str], list[int]],
        size: int,
        fixed: Sequence[tuple[str, Sequence[str], Given]],
        book: Sequence[str],
        weights: dict[str, float] = WEIGHTS,
    ):
        super().__init__(encode)
        self.size, self.book, self.weights = size, book, weights
        self.fixed: dict[str, list[tuple[Sequence[str], Given]]] = {}
        for task, facts, questions in fixed:
            self.fixed.setdefault(task, []).append((facts, questions))
        self.room = size - 1 - len(self.ok)

    def stream(self, rng: random.Random, chunks: int, asked: int, in_book: bool) -> list[Chunk]:
        """One stream of at least one chunk and at most `chunks`, with up to `asked` questions after each."""
        task = rng.choices(list(self.weights), list(self.weights.values()))[0]
        share = rng.uniform(*FACTS_IN_BOOK) if in_book else 1.0
        facts, given = self._story(rng, task, min(FACTS_MOST, max(2, int(chunks * self.room / TOKENS_A_FACT * share))))
        text = self._text(rng, chunks * (self.room - 4) - sum(len(self.tokens(f)) for f in facts)) if in_book else []
        gaps = sorted(rng.randint(0, len(text)) for _ in facts)
        told: list[tuple[str, bool]] = []
        for i in range(len(text) + 1):
            told += [(fact, True) for fact, gap in zip(facts, gaps, strict=True) if gap == i]
            told += [(sentence, False) for sentence in text[i : i + 1]]
        return self._chunks(rng, told, task, given, asked, not in_book and rng.random() < TURNS_SHARE)[:chunks]

    def _story(self, rng: random.Random, task: str, most: int) -> tuple[Sequence[str], Given]:
        if task in self.fixed and (task == "qa4" or rng.random() < REAL_SHARE):
            facts, given = rng.choice(self.fixed[task])
            return (facts, given) if task == "qa4" else (facts[: max(2, rng.randint(min(len(facts), most) // 2, most))], ())
        return story(rng, task, rng.randint(2, most)), ()

    def _text(self, rng: random.Random, room: int) -> list[str]:
        out: list[str] = []
        for sentence in self._others(rng):
            room -= len(self.tokens(sentence))
            if room < 0:
                return out
            out.append(sentence)
        return out

    def _others(self, rng: random.Random) -> Iterator[str]:
        if rng.random() < 0.15 or not self.book:
            yield from sentences(rng, "train")
        at = rng.randrange(len(self.book))
        while True:
            yield self.book[at % len(self.book)]
            at += 1

    def _chunks(self, rng: random.Random, told: list[tuple[str, bool]], task: str, given: Given, asked: int, turns: bool) -> list[Chunk]:
        reader, out, rows = Reader(), list[Chunk](), list[Row]()
        ids, facts, left = [self.user], list[Fact](), sum(fact for _, fact in told)

        def close() -> None:
            nonlocal ids, facts
            questions = self._questions(rng, reader.world, task, () if left else given, asked)
            out.append(Chunk(ids + self.ok, facts, [(q, rows[reader.source(q)]) for q in questions]))
            ids, facts = [self.user], []

        for sentence, fact in told:
            new = self.tokens(sentence)
            if len(ids) - 1 + len(new) > self.room and len(ids) > 1:
                close()
            while len(new) > self.room:
                ids, new = ids + new[: self.room], new[self.room :]
                close()
            if turns and len(ids) > 1 and len(ids) + len(self.ok) + len(new) <= self.room and rng.random() < 0.5:
                ids = [*ids, *self.ok, self.user]
            ids = ids + new
            if fact:
                known, left = reader.tell(sentence), left - 1
                rows.append((len(out), len(ids) - 1))
                thing = OBJECTS[known.thing] if known.thing >= 0 else ""
                told_of = (reader.history.get(sentence.split(" ", 1)[0], ()), reader.history.get(thing, ()), range(len(rows)))
                facts.append(Fact(len(ids) - 1, known, reader.facts, *(_before(rows, numbers, len(out)) for numbers in told_of)))
        if len(ids) > 1:
            close()
        return out

    def _questions(self, rng: random.Random, world: World, task: str, given: Given, asked: int) -> list[Question]:
        if task == "qa4":
            return [Question(text, answer, task) for text, answer in given][:asked]
        found = []
        for _ in range(asked):
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
        ends = np.zeros((b, chunks, self.size), bool)
        told: list[list[tuple[int, Fact]]] = [[] for _ in range(chunks)]
        questions: list[dict[int, list[tuple[Question, Row]]]] = [{} for _ in range(chunks)]
        for i in range(b):
            stream = self.stream(rng, chunks, asked, rng.random() < books)
            lead = chunks - len(stream)
            for c, chunk in enumerate(stream, lead):
                lengths[i, c] = len(chunk.ids)
                ids[i, c, : len(chunk.ids)] = chunk.ids
                for fact in chunk.facts:
                    ends[i, c, fact.place] = True
                    subject, thing, last = (None if row is None else (lead + row[0], row[1]) for row in fact[3:])
                    told[c].append((i, fact._replace(subject=subject, thing=thing, last=last)))
                if chunk.questions and (c == chunks - 1 or rng.random() < often):
                    questions[c][i] = [(q, (lead + at, place)) for q, (at, place) in chunk.questions]
        within = self._within([(ids[i, -1, : lengths[i, -1]].tolist(), questions[-1].get(i, [])) for i in range(b)])
        return Batch(ids, lengths, ends, [_columns(t) for t in told], [self._asked(q) if q else None for q in questions], *within)

    def _within(self, last: list[tuple[list[int], list[tuple[Question, Row]]]]) -> tuple[np.ndarray, np.ndarray]:
        out = np.zeros((2, len(last), self.size), np.int64)
        out[1] = IGNORED
        for i, (ids, questions) in enumerate(last):
            out[0, i, : len(ids)] = ids
            begin = len(ids) - len(self.ok) + 1  # where `Ok.` is about to be said
            out[1, i, begin : len(ids) - 1] = ids[begin + 1 :]
            for question, _ in questions[:1]:
                more, answer = self.exchange(question)
                if len(ids) + len(more) <= self.size:
                    out[0, i, len(ids) : len(ids) + len(more)] = more
                    out[1, i, len(ids) + answer - 1 : len(ids) + len(more) - 1] = more[answer:]
        return out[0], out[1]

    def _asked(self, questions: dict[int, list[tuple[Question, Row]]]) -> Asked:
        streams = sorted(questions)
        exchanges = [[self.exchange(q) for q, _ in questions[i]] for i in streams]
        most, longest = max(map(len, exchanges)), max(len(ids) for e in exchanges for ids, _ in e)
        ids = np.zeros((len(streams), most, longest), np.int64)
        targets, begins = np.full(ids.shape, IGNORED), np.zeros(ids.shape[:2], np.int64)
        named = np.full((*ids.shape[:2], len(Wanted._fields)), UNKNOWN, np.int64)
        sources = np.full((*ids.shape[:2], 2), -1)
        for i, row in enumerate(exchanges):
            for k, (sequence, begin) in enumerate(row):
                ids[i, k, : len(sequence)] = sequence
                targets[i, k, begin - 1 : len(sequence) - 1] = sequence[begin:]
                question, sources[i, k] = questions[streams[i]][k]
                begins[i, k], named[i, k] = begin - 1, wanted(question.text)
        tasks = [[q.task for q, _ in questions[i]] + [""] * (most - len(questions[i])) for i in streams]
        return Asked(streams, ids, targets, begins, named, sources, tasks)


def _before(rows: list[Row], numbers: Sequence[int], chunk: int) -> Row | None:
    """The row of the last of these facts that was told before `chunk`."""
    return next((rows[n] for n in reversed(numbers) if rows[n][0] < chunk), None)


def _columns(told: list[tuple[int, Fact]]) -> Told:
    def rows(at: list[Row | None]) -> np.ndarray:
        return np.array([(-1, -1) if row is None else row for row in at], np.int64).reshape(-1, 2)

    return Told(
        np.array([i for i, _ in told], np.int64),
        np.array([fact.place for _, fact in told], np.int64),
        np.array([[*fact.known, fact.number] for _, fact in told], np.int64).reshape(-1, len(Known._fields) + 1),
        rows([fact.subject for _, fact in told]),
        rows([fact.thing for _, fact in told]),
        rows([fact.last for _, fact in told]),
    )
