"""One training step of a memory on a finished chat model: chunks of talk with facts in some, then questions, the backbone frozen.

Knows the pools of chunks and the banks; what answers cost is asking.py's, the optimiser run.py's. What the layers below the first
memory make of a chunk never changes, so it is computed once when a pool is drawn. Three terms: the answers' tokens (values three times), the input gate on other talk, and the
distance to the backbone's own next-token distribution on exchanges that need no memory.

Axes: b streams, q questions of a stream, t positions of a chunk, s positions of a question, n rows, d hidden, v vocabulary.
"""

import random
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..lm2 import LM2
from ..memory import GatedMemory
from ..tasks.recall import Told
from . import asking, gates, passes
from .plan import Stage
from .run import Terms
from .talks import Asked, Piece, Talks, padded

FACTS_IN_CHUNK = (1, 2, 3, 4, 5)
ASKED = 6  # questions of a stream, and one thing that needs no memory
QUIET_STREAMS = 0.25  # tell no facts, and are asked nothing that needs a memory; half of them read a book
READ_CHUNKS = 8  # of a book, before what is predicted (a longer stream reads them again)
KL_WEIGHT = 2.0  # of the distance to the backbone, beside the loss of the answers
PASSAGE_TOKENS = 180  # that are predicted then
RINGS = (4, 16, 16)  # chunks a training bank holds before rows are written again
EMPTY_ROWS = (0, 256, 512, 1024, 1536)  # never-written rows a question may find beside the written ones

Pools = tuple[list[Piece], list[Piece], list[tuple[list[Piece], Asked]]]


class TalkTask:
    """pools: chunks with facts and without, and passages of books, drawn anew every `renew` steps."""

    aids: torch.nn.Module | None = None

    def __init__(
        self,
        model: LM2,
        talks: Talks,
        seed: int,
        pools: tuple[int, int, int] = (450, 200, 30),
        renew: int = 60,
        recompute: bool = False,
    ):
        self.model, self.talks, self.seed, self.pools, self.renew, self.recompute = (
            model,
            talks,
            seed,
            pools,
            renew,
            recompute,
        )
        self.below = model.config.memory.layers[0]
        self._steps = 0
        self._pools: Pools | None = None
        for memory in self._memories():
            for part in (memory.token_proj, memory.read_proj):
                part.register_forward_hook(lambda module, inputs, out: out.float())  # gates near 1 do not survive bfloat16

    def _memories(self) -> list[GatedMemory]:
        return [cast(GatedMemory, self.model.blocks[i].memory) for i in self.model.config.memory.layers]

    def state(self) -> dict[str, Any]:
        return {"steps": self._steps}

    def restore(self, state: dict[str, Any]) -> None:
        self._steps = state["steps"]

    def _fill(self, pieces: list[Piece], at_once: int = 32) -> None:
        order = sorted(pieces, key=lambda p: len(p.ids))
        for begin in range(0, len(order), at_once):
            group = order[begin : begin + at_once]
            ids = torch.from_numpy(padded([p.ids for p in group], 0, np.int64)).to(self.model.device)  # (b, t)
            with torch.no_grad():
                states = passes.below(self.model, ids, passes.side_by_side([[ids.shape[1]]] * len(group), ids.device), self.below)
            for piece, x in zip(group, states, strict=True):
                piece.hidden = x[: len(piece.ids)].clone()

    def _pool(self, turn: int) -> Pools:
        rng = random.Random(f"{self.seed} pool {turn}")
        told = [p for p in (self.talks.piece(rng, rng.choice(FACTS_IN_CHUNK)) for _ in range(self.pools[0])) if p.told]
        other = [self.talks.piece(rng, 0) for _ in range(self.pools[1])]
        tokens = min(PASSAGE_TOKENS, self.model.config.memory.chunk)
        read = [self.talks.passage(rng, READ_CHUNKS, tokens) for _ in range(self.pools[2])] if self.talks.books else []
        self._fill([*told, *other, *(p for pieces, _ in read for p in pieces)])
        return told, other, read

    @torch.no_grad()
    def probe(self, pieces: int = 800) -> list[gates.Probe]:
        """Start every input gate from a linear probe for facts (see gates.py). For a new memory, before its first step."""
        rng = random.Random(f"{self.seed} probe")
        sample = [self.talks.piece(rng, rng.choice((0, *FACTS_IN_CHUNK))) for _ in range(pieces)]
        self._fill(sample)
        seen: list[list[Tensor]] = [[] for _ in self._memories()]
        hooks = [
            m.register_forward_pre_hook(lambda module, inputs, j=j: seen[j].append(module.norm(inputs[0])[0]))
            for j, m in enumerate(self._memories())
        ]
        for piece in sample:
            x = self._hidden(piece)[None]
            banks = [torch.zeros(1, x.shape[1], x.shape[2], device=x.device) for _ in seen]
            passes.read(
                self.model, x, banks, [None] * len(seen), 0, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device), begin=self.below
            )
        for hook in hooks:
            hook.remove()
        keep = torch.tensor([q == 0 for p in sample for q in p.quiet], device=self.model.device)
        probes = []
        for memory, states in zip(self._memories(), seen, strict=True):
            with torch.enable_grad():
                probes.append(gates.fit(torch.cat(states).cpu(), keep.cpu(), self.seed))
            gates.install(memory, probes[-1])
        return probes

    def _hidden(self, piece: Piece) -> Tensor:
        if piece.hidden is None:
            raise ValueError("a piece is used before what the lower layers make of it was computed")
        return piece.hidden

    def step(self, stage: Stage, rng: random.Random) -> Terms:
        """The loss of one batch, to be differentiated."""
        if self._pools is None or self._steps % self.renew == 0:
            self._pools = self._pool(self._steps // self.renew)
        self._steps += 1
        chunks = rng.randint(stage.least, stage.most) if rng.random() < 0.8 else stage.most
        self.talks.headed = rng.random() < 0.2
        empty = rng.choice(EMPTY_ROWS)
        streams, asked, distances = self._draw(stage, rng, chunks)
        size, ring = self.talks.size, min(rng.choice(RINGS), chunks)
        shape = (len(streams), ring * size, self.model.config.hidden_size)
        banks = [torch.zeros(shape, device=self.model.device) for _ in self._memories()]
        reads: passes.Reads = [None] * len(banks)
        written: list[list[tuple[Tensor, Tensor]]] = []  # of each block of rows: keys and values of each bank
        quiet: list[Tensor] = []
        loud: list[Tensor] = []
        for c in range(chunks):
            first = c % ring * size
            banks = self._read([stream[c] for stream in streams], banks, reads, first, quiet, loud)
            block = passes.keys_values(self.model, [bank[:, first : first + size] for bank in banks])
            written = [*written, block] if c < ring else [block if i == c % ring else old for i, old in enumerate(written)]
            reads = [_joined([block[j] for block in written], empty) for j in range(len(banks))]
        sheet = asking.laid_out(asked, self.model.device)
        with torch.no_grad():
            below = passes.below(self.model, sheet.ids, sheet.rows, self.below)  # (b, t, d)
        h = passes.answer_rows(self.model, below, reads, sheet.rows, self.below)  # (b, t, d)
        loss, right = asking.answers(self.model, h, sheet)
        kl = asking.distance(self.model, below, h, sheet, self.below, rng)
        hits: dict[str, list[bool]] = {}
        for back, questions, said in zip(distances, asked, right, strict=True):
            for n, question, ok in zip(back, questions, said, strict=False):
                if question.value_at >= 0:
                    hits.setdefault(f"{n} back", []).append(ok)
        figures = {"kl": float(kl.detach()), "gate_on_facts": float(torch.stack(loud).mean()) if loud else 0.0}
        return Terms(loss + KL_WEIGHT * kl, torch.stack(quiet).mean(), figures, hits, sum(len(p.ids) for s in streams for p in s))

    def _draw(self, stage: Stage, rng: random.Random, chunks: int) -> tuple[list[list[Piece]], list[list[Asked]], list[list[int]]]:
        assert self._pools is not None
        told, other, read = self._pools
        streams: list[list[Piece]] = []
        asked: list[list[Asked]] = []
        distances: list[list[int]] = []
        for number in range(stage.batch):
            if number and rng.random() < QUIET_STREAMS:
                if read and rng.random() < 0.5:
                    pieces, rest = rng.choice(read)
                    streams.append((pieces * (1 + chunks // READ_CHUNKS))[-chunks:])
                    asked.append([rest])
                else:
                    streams.append([rng.choice(other) for _ in range(chunks)])
                    asked.append([self.talks.ordinary(rng, ()) for _ in range(ASKED + 1)])
                distances.append([])
                continue
            where = [0] if rng.random() < 0.5 else rng.sample(range(chunks), min(chunks, rng.choice((1, 2))))
            stream: list[Piece] = []
            known: dict[tuple[str, str], tuple[Told, int]] = {}
            for c in range(chunks):
                piece = rng.choice(told if c in where else other)
                while any((t.kind, t.other) in known for t in piece.told) and rng.random() >= stage.conflicts:
                    piece = rng.choice(told)
                stream.append(piece)
                known |= {(t.kind, t.other): (t, c) for t in piece.told}
            facts = list(known.values())
            rng.shuffle(facts)
            pair = (facts * ASKED)[:ASKED]
            streams.append(stream)
            asked.append([*(self.talks.question(rng, t) for t, _ in pair), self.talks.ordinary(rng, {kind for kind, _ in known})])
            distances.append([chunks - c for _, c in pair])
        return streams, asked, distances

    def _read(
        self, pieces: list[Piece], banks: list[Tensor], reads: passes.Reads, first: int, quiet: list[Tensor], loud: list[Tensor]
    ) -> list[Tensor]:
        marks = torch.from_numpy(padded([p.quiet for p in pieces], -1.0, np.float32)).to(self.model.device)  # (b, t)
        states = [self._hidden(p) for p in pieces]
        x = torch.nn.utils.rnn.pad_sequence(states, batch_first=True)  # (b, t, d)
        inside: list[Tensor] = []
        banks = passes.read(self.model, x, banks, reads, first, marks >= 0, self.below, inside, self.recompute)
        weights = marks.clamp(min=0)
        for gate in inside:
            mean = gate.mean(-1)  # (b, t)
            quiet.append((mean * weights).sum() / weights.sum().clamp(min=1))
            if bool((marks == 0).any()):
                loud.append(mean.detach()[marks == 0].mean())
        return banks


def _joined(blocks: list[tuple[Tensor, Tensor]], empty: int) -> tuple[Tensor, Tensor]:
    """Keys and values (b, h, n, e) of blocks of rows, and of `empty` rows that were never written."""
    k, v = (F.pad(torch.cat(parts, dim=2), (0, 0, 0, empty)) for parts in zip(*blocks, strict=True))
    return k, v
