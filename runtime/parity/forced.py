"""Two backends fed the same tokens in lockstep: logits of every position, and the bank after every chunk.

Knows the backend contract. Each side carries its own bank from chunk to chunk, so what differs adds up as it would in use.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ..backend import Backend, MemoryState
from .inputs import Inputs
from .measures import LogitStats, bank_nmse


@dataclass
class Forced:
    """The outcome. logits by kind of token; banks: per chunk, NMSE of each bank; lengths and kinds: what each chunk was; calls in all."""

    logits: dict[str, LogitStats] = field(default_factory=dict)
    banks: list[list[float]] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    calls: int = 0
    worst: tuple[int, int] = (-1, -1)  # chunk and position with the largest difference of a logit

    @property
    def all_logits(self) -> LogitStats:
        out = LogitStats()
        for stats in self.logits.values():
            out = out.merged(stats)
        return out


def run(
    reference: Backend, other: Backend, inputs: Inputs, chunks: int, drift: int = 0, say: Callable[[str], None] = lambda text: None
) -> Forced:
    """Feed `chunks` chunks and compare logits and banks; go on to `drift` chunks in all, comparing banks only."""
    out = Forced()
    a, b = first_state(reference), first_state(other)
    largest = 0.0
    for c in range(max(chunks, drift)):
        say(f"chunk {c + 1} of {max(chunks, drift)}")
        fed = inputs.chunk(c)
        compared = c < chunks
        x, y = reference.start(1, a), other.start(1, b)
        for piece in fed.pieces():
            begin = x.length
            p, x = reference.extend(piece, x, compared)  # (1, t, v) or (1, v)
            q, y = other.extend(piece, y, compared)
            if compared:
                part = LogitStats()
                part.add(p[0], q[0])
                if not np.isnan(largest) and not part.largest <= largest:  # a NaN is the largest of all
                    largest, out.worst = part.largest, (c, begin + part.worst)
                out.logits[fed.kind] = out.logits.get(fed.kind, LogitStats()).merged(part)
        a, b = reference.commit(x), other.commit(y)
        out.banks.append(bank_nmse(reference.to_host(a), other.to_host(b)))
        out.lengths.append(len(fed.tokens))
        out.kinds.append(fed.kind)
        out.calls += len(fed.calls)
    return out


def first_state(backend: Backend) -> MemoryState:
    """The memory before the first word."""
    return MemoryState(backend.commit(backend.start(1)).bank, 0)
