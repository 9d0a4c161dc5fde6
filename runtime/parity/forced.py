"""Two backends fed the same tokens in lockstep: logits of every position, and the bank after every chunk.

Knows the backend contract. The other side goes through each chunk twice: from the reference's bank, in the same calls, so that what differs
was computed in that chunk; and from its own bank, in one call, so that what differs has added up since the first word, as it would in use.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ..backend import Backend, MemoryState
from .inputs import Inputs
from .measures import LogitStats, bank_nmse
from .window import Windowed, compare_window, script


@dataclass
class Forced:
    """The outcome. logits by kind of token, worst: chunk and position of the largest difference. Per chunk: banks, the NMSE of each bank from
    the same start; carried, the same with banks of their own. own: logits with banks of their own, of each chunk's last call, which are
    the same however a chunk is split in every cell (its last position in chunks that only drift). lengths, kinds: what each chunk was; calls in all.
    window: cell gated, one with folds and carried tokens after the compared chunks."""

    logits: dict[str, LogitStats] = field(default_factory=dict)
    worst: tuple[int, int] = (-1, -1)
    banks: list[list[float]] = field(default_factory=list)
    carried: list[list[float]] = field(default_factory=list)
    own: LogitStats = field(default_factory=LogitStats)
    lengths: list[int] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    calls: int = 0
    window: Windowed | None = None

    @property
    def all_logits(self) -> LogitStats:
        out = LogitStats()
        for stats in self.logits.values():
            out = out.merged(stats)
        return out


def run(
    reference: Backend, other: Backend, inputs: Inputs, chunks: int, drift: int = 0, say: Callable[[str], None] = lambda text: None
) -> Forced:
    """Compare `chunks` chunks from the same and from own banks; go on to `drift` chunks in all with own banks only."""
    out = Forced()
    a, own = first_state(reference), first_state(other)
    largest = 0.0
    for c in range(max(chunks, drift)):
        say(f"chunk {c + 1} of {max(chunks, drift)}")
        fed = inputs.chunk(c)
        compared = c < chunks
        x = reference.start(1, a)
        y = other.start(1, other.from_host(reference.to_host(a), a.written)) if compared else None
        for piece in fed.pieces():
            begin = x.length
            p, x = reference.extend(piece, x, compared)  # (1, t, v) or (1, v)
            if y is not None:
                q, y = other.extend(piece, y, True)  # (1, t, v)
                part = LogitStats()
                part.add(p[0], q[0])
                if not np.isnan(largest) and not part.largest <= largest:  # a NaN is the largest of all
                    largest, out.worst = part.largest, (c, begin + part.worst)
                out.logits[fed.kind] = out.logits.get(fed.kind, LogitStats()).merged(part)
        last, z = other.extend(fed.tokens, other.start(1, own), compared)  # (1, t, v) or (1, v)
        out.own.add(*((p[0], last[0, -p.shape[1] :]) if compared else (p, last)))
        a, own = reference.commit(x), other.commit(z)
        bank = reference.to_host(a)
        if y is not None:
            out.banks.append(bank_nmse(bank, other.to_host(other.commit(y))))
        out.carried.append(bank_nmse(bank, other.to_host(own)))
        out.lengths.append(len(fed.tokens))
        out.kinds.append(fed.kind)
        out.calls += len(fed.calls)
        if c == chunks - 1 and reference.config.memory.cell == "gated":
            say("a window with folds")
            out.window = compare_window(reference, other, script(reference.config, inputs), a)
    return out


def first_state(backend: Backend) -> MemoryState:
    """The memory before the first word."""
    return MemoryState(backend.commit(backend.start(1)).bank, 0)
