"""Pools of threads and questions that were run through the layers below a memory once, to be used by many steps.

What those layers make of a text never changes. What its memories met (banks.py) and the windows' keys and values above the first memory are as the
memory was when the pool was drawn. Axes: q questions, t positions, n rows, d hidden.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..lm2 import LM2
from . import banks, prefixed
from .plan import TrainError
from .threads import Question, Thread, Threads

PREFIXES = (("none", 0.45), ("other", 0.3), ("own", 0.25))
BESIDE = (("none", 0.35), ("other", 0.25), ("told", 0.4))  # windows of what no memory helps with: nothing, other talk, talk that tells facts
PASSAGE = 140  # tokens of a book to be predicted
GROUP = 10  # questions that are computed together, at most
TAIL = 260  # tokens of talk in a window, at most
TRIES = 50
LENGTHS, OTHER_LENGTHS = (160, 420), (250, 450)  # of threads, tokens
POSITIONS = 2048


@dataclass
class Group:
    """Questions behind one window. thread: the number of the one that tells what is asked, None where nothing told helps. before: keys and values
    of the window, of each layer. states: what the layers below the first memory make of each question, (t, d); lately: its topics at each token
    (q, t, f), None without. final: without a memory, (t, d). beside: the number of a thread with facts whose end the window holds, where nothing told
    helps."""

    thread: int | None
    before: list[prefixed.KV]
    questions: list[Question]
    states: list[Tensor]
    lately: Tensor | None
    final: list[Tensor]
    beside: int | None = None


@dataclass
class Pool:
    """kept: threads with facts, then others (`told` of the first kind). groups: by kept thread; nothing: where no memory helps."""

    kept: list[banks.Kept]
    told: int
    groups: list[list[Group]]
    nothing: list[Group]
    stale: list[banks.Written]


class Pools:
    """sizes: threads with facts, threads without, groups of questions that need no memory."""

    def __init__(self, model: LM2, threads: Threads, seed: int, sizes: tuple[int, int, int]):
        self.model, self.threads, self.seed, self.sizes = model, threads, seed, sizes
        self.below = model.config.memory.layers[0]
        self.slots = model.config.memory.slots
        self.memories = prefixed.memories(model)
        self.tables = model.tables(POSITIONS)

    @torch.no_grad()
    def draw(self, turn: int) -> Pool:
        """Pool number `turn`, a function of the seed and of the memory as it is."""
        rng = random.Random(f"{self.seed} pool {turn}")
        told = [self._told(rng) for _ in range(self.sizes[0])]
        other = [self._other(rng, number) for number in range(self.sizes[1])]
        unread = prefixed.unread(self.model)
        first = [banks.write(self.memories, banks.keep(self.model, thread, unread, self.tables)) for thread in other]
        rows = [bank[-self.slots :] for bank in banks.joined(first, None, [])]
        reads = banks.reads(self.memories, rows)
        kept = [banks.keep(self.model, thread, reads, self.tables) for thread in (*told, *other)]
        groups = [self._groups(rng, number, thread, other, reads) for number, thread in enumerate(told)]
        nothing = []
        for number in range(self.sizes[2]):
            if self.threads.books and number % 4 == 0:
                prefix, passage = self.threads.read_on(rng, rng.randint(30, TAIL), PASSAGE)
                questions, beside = [passage], None
            else:
                prefix, beside = self._beside(rng, told, other)
                questions = [self.threads.nothing(rng) for _ in range(5)]
            before, _ = prefixed.window(self.model, self._ids(prefix), reads, self.tables)
            nothing.append(self._group(None, prefix, before, questions, beside))
        stale = [banks.write(self.memories, k) for k in kept]
        return Pool(kept, len(told), groups, nothing, stale)

    def _told(self, rng: random.Random) -> Thread:
        """A thread that fits in a bank and can be asked about."""
        for _ in range(TRIES):
            thread = self.threads.thread(rng, rng.randint(*LENGTHS), 0.85)
            if thread.rows <= self.slots and any(fact.at is not None for fact in thread.facts):
                return thread
        raise TrainError(f"a memory of {self.slots} rows is too small for a conversation with facts: give more --memory-blocks")

    def _other(self, rng: random.Random, number: int) -> Thread:
        if self.threads.books and number % 5 == 0:
            return self.threads.read(rng, rng.randint(*OTHER_LENGTHS))
        return self.threads.thread(rng, rng.randint(*OTHER_LENGTHS), 0.06)

    def _ids(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor(ids, dtype=torch.long, device=self.model.device)

    def _prefix(self, rng: random.Random, thread: Thread) -> list[int]:
        """The head and a thread's end, as a window holds them."""
        return [*self.threads.head, *thread.ids[thread.head :][-rng.randint(40, TAIL) :]]

    def _beside(self, rng: random.Random, told: Sequence[Thread], other: Sequence[Thread]) -> tuple[list[int], int | None]:
        """A window in which something is said that no memory helps with, and the number of the thread with facts that it holds the end of."""
        way = rng.choices([w for w, _ in BESIDE], [s for _, s in BESIDE])[0]
        if way == "told" and told:
            number = rng.randrange(len(told))
            return self._prefix(rng, told[number]), number
        return (self._prefix(rng, rng.choice(other)) if way == "other" else self.threads.head), None

    def _groups(self, rng: random.Random, number: int, thread: Thread, other: Sequence[Thread], reads: prefixed.Reads) -> list[Group]:
        last = {fact.key: fact for fact in thread.facts}
        questions = [q for fact in last.values() for q in (self.threads.question(rng, fact) for _ in range(2)) if q.value]
        rng.shuffle(questions)
        way = rng.choices([w for w, _ in PREFIXES], [s for _, s in PREFIXES])[0]
        prefix = self.threads.head if way == "none" else self._prefix(rng, thread if way == "own" else rng.choice(other))
        before, _ = prefixed.window(self.model, self._ids(prefix), reads, self.tables)
        return [self._group(number, prefix, before, questions[i : i + GROUP]) for i in range(0, len(questions), GROUP)]

    def _group(self, number: int | None, prefix: list[int], before: list[prefixed.KV], questions: list[Question], beside: int | None = None) -> Group:
        ids = padded([q.ids for q in questions], 0).to(self.model.device)  # (q, t)
        met: list[Tensor] = []
        unread = prefixed.unread(self.model)
        x = prefixed.layers(self.model, self.model.embed_tokens(ids), self.tables, unread, 0, self.below, before, met=met)
        final: list[Tensor] = []
        if number is None:
            plain, _ = prefixed.window(self.model, self._ids(prefix), unread, self.tables)
            y = prefixed.layers(self.model, x, self.tables, unread, self.below, len(self.model.layers), plain)
            final = [y[i, : len(q.ids)].clone() for i, q in enumerate(questions)]
        nothing = (before[0][0][:, :, :, :0], before[0][1][:, :, :, :0])
        states = [x[i, : len(q.ids)].clone() for i, q in enumerate(questions)]
        return Group(number, [nothing] * self.below + before[self.below :], questions, states, met[1] if met else None, final, beside)


def padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """Rows of unequal lengths as one tensor, filled up at the end."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])
