"""Streams of chunks for a small model trained from scratch: bAbI-like stories, with and without other text between, and questions everywhere.

A stream is cut into chunks; after each chunk some questions are asked of the memory, each in a fresh chunk that is not committed. Knows
text, tokens and chunks; the model is others' business.

Axes: b streams, c chunks, t positions of a chunk, q questions after a chunk, s positions of a question.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..tasks.fillers import sentences
from ..tasks.world import Question, World, story
from .speech import Speech

IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """ids (b, c, t), lengths (b, c), facts (b, c, t) True on tokens of facts; asked (b, c, q, s) with targets of the same shape (-100: no loss).

    lengths counts a chunk's tokens, 0 for the empty ones in front. local, local_targets (b, t): the last chunk once more, with its first
    question inside. tasks: (b, c, q) names, "" where there is no question. subjects (b, c, t): on each token of a fact but the first, the
    id its sentence began with; asked_subjects (b, c, q, s): the id of the name asked for, where the answer begins. ends (b, c, t): the
    last two tokens of each fact. All int64 but facts and ends.
    """

    ids: np.ndarray
    lengths: np.ndarray
    facts: np.ndarray
    asked: np.ndarray
    targets: np.ndarray
    local: np.ndarray
    local_targets: np.ndarray
    tasks: list[list[list[str]]]
    subjects: np.ndarray
    asked_subjects: np.ndarray
    ends: np.ndarray


@dataclass
class _Chunk:
    """One chunk: its tokens, which of them tell facts, the subject of each (see Batch), and what is asked after it."""

    ids: list[int]
    facts: list[bool]
    questions: list[Question]
    subjects: list[int]


class Stories(Speech):
    """Draws batches. encode: token ids of a text (called once per sentence); fixed: real stories (task, facts, questions); book: real sentences."""

    def __init__(
        self,
        encode: Callable[[str], list[int]],
        size: int,
        fixed: Sequence[tuple[str, Sequence[str], Sequence[tuple[str, str]]]],
        book: Sequence[str],
        weights: dict[str, float],
    ):
        super().__init__(encode)
        self.size = size
        self.book = book
        self.weights = weights
        self.simple = False
        self.far = False
        self.fixed: dict[str, list[tuple[Sequence[str], Sequence[tuple[str, str]]]]] = {}
        for task, facts, questions in fixed:
            self.fixed.setdefault(task, []).append((facts, questions))
        self.period = encode(" Ok.")[-1]

    def stream(self, rng: random.Random, chunks: int, asked: int) -> list[_Chunk]:
        """One stream of at least one chunk and at most `chunks`, with up to `asked` questions after each."""
        task = rng.choices(list(self.weights), list(self.weights.values()))[0]
        room = chunks * (self.size - 6)
        if self.simple:
            short = [(fact, True) for fact in story(rng, "qa1", rng.randint(2, 4))]
            return self._chunks(rng, short, "qa1", (), chunks, asked, False)
        dense = rng.random() < 0.35
        most = max(2, min(room // 8, {"qa1": 60, "qa2": 60, "qa3": 90, "qa5": 70}.get(task, 2)))
        count = most if dense else rng.randint(2, max(2, min(most, 4 + chunks * 3)))
        if self.far and task == "qa1":
            dense, count = False, int(chunks * rng.uniform(1.5, 4.0))
        given: Sequence[tuple[str, str]] = ()
        if task in self.fixed and (task == "qa4" or rng.random() < (0.1 if self.far else 0.5)):
            facts, given = rng.choice(self.fixed[task])
            facts = list(facts)[:count]
        else:
            facts = story(rng, task, count)
            if task == "qa1" and not dense:
                facts = _with_rest(rng, facts, self.far)
        used = sum(len(self.tokens(f)) for f in facts)
        other: list[list[str]] = [[] for _ in range(len(facts) + 1)]
        if not dense or task == "qa4":
            budget = int((room - used) * rng.choice((1.0, 1.0, rng.random())))
            for sentence in self._others(rng):
                budget -= len(self.tokens(sentence))
                if budget < 0:
                    break
                other[rng.randrange(len(other))].append(sentence)
        told: list[tuple[str, bool]] = [(s, False) for s in other[0]]
        for fact, gap in zip(facts, other[1:], strict=True):
            told.append((fact, True))
            told += [(s, False) for s in gap]
        cut = rng.random() < 0.4
        return self._chunks(rng, told, task, given, chunks, asked, cut)

    def _others(self, rng: random.Random) -> Iterator[str]:
        if rng.random() < 0.3 or not self.book:
            yield from sentences(rng, "train")
        at = rng.randrange(len(self.book))
        while True:
            yield self.book[at % len(self.book)]
            at += 1

    def _chunks(
        self,
        rng: random.Random,
        told: list[tuple[str, bool]],
        task: str,
        given: Sequence[tuple[str, str]],
        chunks: int,
        asked: int,
        cut: bool,
    ) -> list[_Chunk]:
        world = World()
        out: list[_Chunk] = []
        ids: list[int] = [] if cut else [self.user]
        facts = [False] * len(ids)
        size = self.size if cut else self.size - len(self.ok)
        left = sum(fact for _, fact in told)
        turns = self.far and not cut and rng.random() < 0.5  # several short messages instead of a long one
        said: list[tuple[int, int, int]] = []

        def close() -> None:
            if not cut:
                ids.extend(self.ok)
                facts.extend([False] * len(self.ok))
            subjects = [IGNORED] * self.size
            for at, n, who in said:
                for j in range(at + 1, min(at + n, self.size)):
                    subjects[j] = who
            out.append(
                _Chunk(ids[: self.size], facts[: self.size], self._questions(rng, world, task, given if left == 0 else (), asked), subjects)
            )
            said.clear()

        for sentence, fact in told:
            new = self.tokens(sentence)
            if not cut and len(ids) + len(new) > size and len(ids) > 1:
                close()
                ids, facts = [self.user], [False]
            if fact and task != "qa4":
                said.append((len(ids), len(new), new[0]))
            ids = ids + new
            facts = facts + [fact] * len(new)
            if turns and rng.random() < 0.5 and len(ids) + len(self.ok) + 1 < size:
                ids = [*ids, *self.ok, self.user]
                facts = facts + [False] * (len(self.ok) + 1)
            while len(ids) > size:
                rest, rest_facts = ids[size:], facts[size:]
                ids, facts = ids[:size], facts[:size]
                close()
                ids, facts = ([] if cut else [self.user]) + rest, ([] if cut else [False]) + rest_facts
            if fact:
                world.tell(sentence)
                left -= 1
        if len(ids) > 1 or not out:
            close()
        return out[:chunks]

    def _questions(self, rng: random.Random, world: World, task: str, given: Sequence[tuple[str, str]], asked: int) -> list[Question]:
        if task == "qa4":
            return [Question(q, a, task) for q, a in given][:asked]
        found = []
        for _ in range(asked):
            kind = task if task in ("qa1", "qa5") or rng.random() < 0.7 else rng.choice(("qa1", "qa2"))
            q = world.questions(rng, kind, self.far and rng.random() < 0.75) or world.questions(rng, "qa1")
            if q is not None:
                found.append(q)
        return found

    def batch(self, rng: random.Random, b: int, chunks: int, asked: int) -> Batch:
        """`b` streams of `chunks` chunks, padded; a shorter stream is padded in front with empty chunks."""
        streams = [self.stream(rng, chunks, asked) for _ in range(b)]
        t = self.size
        ids = np.zeros((b, chunks, t), np.int64)
        lengths = np.zeros((b, chunks), np.int64)
        facts = np.zeros((b, chunks, t), bool)
        local, local_targets = np.zeros((b, t), np.int64), np.full((b, t), IGNORED)
        subjects = np.full((b, chunks, t), IGNORED)
        exchanges = [[[self.exchange(q) for q in c.questions] for c in s] for s in streams]
        s_max = max([len(e[0]) for s in exchanges for c in s for e in c], default=8)
        asked_ids = np.zeros((b, chunks, asked, s_max), np.int64)
        targets = np.full((b, chunks, asked, s_max), IGNORED)
        asked_subjects = np.full((b, chunks, asked, s_max), IGNORED)
        tasks = [[[""] * asked for _ in range(chunks)] for _ in range(b)]
        for i, stream in enumerate(streams):
            lead = chunks - len(stream)
            for c, piece in enumerate(stream):
                n = len(piece.ids)
                subjects[i, lead + c] = piece.subjects
                ids[i, lead + c, :n], facts[i, lead + c, :n], lengths[i, lead + c] = piece.ids, piece.facts, n
                for k, (seq, begin) in enumerate(exchanges[i][c]):
                    asked_ids[i, lead + c, k, : len(seq)] = seq
                    targets[i, lead + c, k, begin - 1 : len(seq) - 1] = seq[begin:]
                    if piece.questions[k].task == "qa1":
                        asked_subjects[i, lead + c, k, begin - 1] = seq[begin - 4]
                    tasks[i][lead + c][k] = piece.questions[k].task
            last = stream[-1]
            body = last.ids if last.ids[-1] == self.end else [*last.ids, *self.ok]
            for seq, begin in exchanges[i][-1][:1]:
                if len(body) + len(seq) <= t:
                    local[i, : len(body) + len(seq)] = [*body, *seq]
                    local_targets[i, len(body) + begin - 1 : len(body) + len(seq) - 1] = seq[begin:]
                    local_targets[i, len(body) - len(self.ok) + 1 : len(body) - 1] = self.ok[2:]
        stops = ids == self.period
        ends = facts & (stops | np.roll(stops, -1, axis=2))  # (b, c, t)
        return Batch(ids, lengths, facts, asked_ids, targets, local, local_targets, tasks, subjects, asked_subjects, ends)


def _with_rest(rng: random.Random, facts: list[str], far: bool) -> list[str]:
    """The story without what some of its people do after a point of their own, so that old places are asked for as well as new ones.

    far: one or two of them come to rest in the first quarter, and the others go on.
    """
    people = sorted({fact.split()[0] for fact in facts})
    resting = rng.sample(people, min(len(people), rng.choice((1, 1, 2)))) if far else [who for who in people if rng.random() < 0.6]
    until = {who: rng.randrange(max(1, len(facts) // (4 if far else 1))) for who in resting}
    kept = [fact for i, fact in enumerate(facts) if i <= until.get(fact.split()[0], len(facts))]
    return kept or facts[:1]
