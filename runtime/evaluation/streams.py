"""Many streams of chunks through one backend at a time: read, commit, ask, answer greedily. Knows ids and the Backend protocol; no text.

Streams share a batch although their chunks differ in length: shorter ones are padded on the right and the rows of the padding are put
back after the commit, which is exact because no token changes what was before it. Where one does (cell `released` with chunk pooling)
only chunks of one length share a batch. Questions of one length share a batch. Rows of a batch do not influence each other; their
numbers differ from those of a batch of one by rounding. Axes: l banks, b batch, n rows, d width, t tokens, v vocabulary.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from ..backend import Backend, MemoryState

Ids = tuple[int, ...]
TOKENS_AT_ONCE = 4096
STREAMS_AT_ONCE = 64
PAD = 0


class Stream(NamedTuple):
    """What one sample is made of. chunks: each is committed; question: asked in a fresh chunk, never committed."""

    chunks: tuple[Ids, ...]
    question: Ids


class Stopped(Exception):
    """The user wants to stop: what was asked for is not complete."""


def streams_at_once(backend: Backend) -> int:
    """How many streams fill the machine without filling its memory: 4,096 tokens a step on a CPU, eight times that elsewhere, at most 2 GB."""
    about = backend.describe()
    chunk = backend.config.memory.chunk
    tokens = TOKENS_AT_ONCE if about.device == "cpu" else 8 * TOKENS_AT_ONCE
    room = int(2e9 / max(1, 3 * about.state_bytes + about.window_bytes))
    return max(1, min(tokens // chunk, room, STREAMS_AT_ONCE))


def surprise(logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Minus the log likelihood of tokens (t,) under logits (t, v), float64 in nats."""
    top = logits.max(axis=-1, keepdims=True)  # (t, 1)
    total = np.exp(logits - top).sum(axis=-1, dtype=np.float64)  # (t,)
    return np.log(total) - (logits[np.arange(len(tokens)), tokens] - top[:, 0]).astype(np.float64)


class Reader:
    """Reads streams and answers questions on one backend. Keeps no conversation.

    ends: ids that end an answer. longest: tokens of an answer at most. check() is called between steps and may raise Stopped.
    """

    def __init__(self, backend: Backend, ends: Iterable[int], longest: int, check: Callable[[], None] = lambda: None):
        self.backend, self.ends, self.longest, self.check = backend, frozenset(ends), longest, check
        m = backend.config.memory
        self.causal = m.cell == "gated" or m.gate_pool == "causal"
        self.initial = backend.to_host(MemoryState(backend.commit(backend.start(1)).bank, 0))  # (l, 1, n, d)

    def read(self, streams: Sequence[tuple[Ids, ...]], fed: Callable[[int], None] = lambda tokens: None) -> list[np.ndarray]:
        """Commit every chunk of each stream, from the never-written memory on; the banks they end with, each (l, 1, n, d) float32.

        `fed` hears of the tokens of each step.
        """
        banks = [self.initial] * len(streams)
        for step in range(max(map(len, streams), default=0)):
            live = [i for i, chunks in enumerate(streams) if step < len(chunks)]
            for group in self._groups([(i, len(streams[i][step])) for i in live]):
                self.check()
                rows = [streams[i][step] for i in group]
                after = self.step(np.concatenate([banks[i] for i in group], axis=1), step, rows)
                for place, i in enumerate(group):
                    banks[i] = after[:, place : place + 1]
                fed(sum(map(len, rows)))
        return banks

    def step(self, bank: np.ndarray, chunks: int, rows: Sequence[Ids]) -> np.ndarray:
        """One chunk of every stream: bank (l, b, n, d) before it, `chunks` committed so far, its tokens; the bank after it."""
        backend = self.backend
        lengths = [len(ids) for ids in rows]
        longest = max(lengths)
        tokens = np.full((len(rows), longest), PAD, dtype=np.int64)  # (b, t)
        for i, ids in enumerate(rows):
            tokens[i, : len(ids)] = ids
        _, chunk = backend.extend(tokens, backend.start(len(rows), self._after(bank, chunks)))
        after = backend.to_host(backend.commit(chunk))
        if min(lengths) < longest:
            m = backend.config.memory
            first = 0 if m.cell == "released" else chunks * m.chunk % m.slots
            for i, length in enumerate(lengths):
                after[:, i, first + length : first + longest] = bank[:, i, first + length : first + longest]
        return after

    def _after(self, bank: np.ndarray, chunks: int) -> MemoryState:
        """The state after so many chunks, each counted whole: a stream's next chunk writes the rows after theirs, however short they were."""
        return self.backend.from_host(bank, chunks * self.backend.config.memory.chunk)

    def score(self, bank: np.ndarray, chunks: int, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One chunk of every stream, tokens (b, t): minus the log likelihood of each token but the first, (b, t - 1) float64 in nats, and the
        bank (l, b, n, d) after it."""
        backend = self.backend
        logits, chunk = backend.extend(tokens, backend.start(len(tokens), self._after(bank, chunks)), all_logits=True)  # (b, t, v)
        losses = np.stack([surprise(row[:-1], ids[1:]) for row, ids in zip(logits, tokens, strict=True)])
        return losses, backend.to_host(backend.commit(chunk))

    def ask(self, banks: Sequence[np.ndarray], questions: Sequence[Ids], batch: int = STREAMS_AT_ONCE) -> list[Ids]:
        """The greedy answer to each question in a fresh chunk that reads the bank beside it, (l, 1, n, d). Nothing is committed."""
        answers: list[Ids] = [()] * len(questions)
        by_length: dict[int, list[int]] = {}
        for i, ids in enumerate(questions):
            by_length.setdefault(len(ids), []).append(i)
        for same in by_length.values():
            for begin in range(0, len(same), batch):
                group = same[begin : begin + batch]
                bank = np.concatenate([banks[i] for i in group], axis=1)
                for i, answer in zip(group, self._answers(bank, [questions[i] for i in group]), strict=True):
                    answers[i] = answer
        return answers

    def _answers(self, bank: np.ndarray, questions: Sequence[Ids]) -> list[Ids]:
        """Questions of one length, bank (l, b, n, d). A row that has ended is fed padding until all have."""
        backend = self.backend
        answers: list[list[int]] = [[] for _ in questions]
        live = set(range(len(questions)))
        chunk = backend.start(len(questions), backend.from_host(bank, 0))
        tokens = np.array(questions, dtype=np.int64)  # (b, t)
        while True:
            self.check()
            logits, chunk = backend.extend(tokens, chunk)  # (b, v)
            best = logits.argmax(axis=-1)  # (b,)
            for i in list(live):
                if int(best[i]) in self.ends:
                    live.discard(i)
                    continue
                answers[i].append(int(best[i]))
                if len(answers[i]) >= self.longest:
                    live.discard(i)
            if not live or chunk.length >= backend.config.memory.chunk:
                return [tuple(a) for a in answers]
            tokens = np.array([[best[i] if i in live else PAD] for i in range(len(questions))], dtype=np.int64)  # (b, 1)

    def _groups(self, lengths: Sequence[tuple[int, int]]) -> list[list[int]]:
        """Which streams may share this step: all of those with tokens, or those of one length."""
        groups: dict[int, list[int]] = {}
        for i, length in lengths:
            if length:
                groups.setdefault(0 if self.causal else length, []).append(i)
        return list(groups.values())
