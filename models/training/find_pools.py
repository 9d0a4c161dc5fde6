"""Pools of told messages and of questions for them, as the backbone meets them: what its layers make of both never changes, so it is computed once.

A pool's texts are a function of the seed. Its states take a minute or two, so they are kept in a file each. Knows texts and hidden states; what a memory
makes of them is find_task.py's. Axes: t positions of a sequence, n rows, p places of values, l memories, d hidden.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..atomic import write_file
from ..lm2 import LM2
from . import prefixed
from .pools import POSITIONS, padded
from .threads import Fact, Question, Threads

TOGETHER = 24  # sequences that are computed at once


@dataclass
class FindPool:
    """facts of each sequence of messages, places counted in it; states (n, l, d) of all sequences one after the other, float16, and where each begins;
    questions, each one's sequence and states (p, l, d) where the tokens of its value are said."""

    facts: list[list[Fact]]
    begins: list[int]
    states: Tensor
    questions: list[Question]
    owner: list[int]
    said: list[Tensor]


class FindPools:
    """messages: of a pool. kept: a folder for the states, or None. key: what the states are of (a backbone's fingerprint)."""

    def __init__(self, model: LM2, threads: Threads, seed: int, messages: int, kept: Path | None, key: str = ""):
        self.model, self.threads, self.seed, self.messages, self.kept, self.key = model, threads, seed, messages, kept, key
        self.layers = model.config.memory.layers
        self.tables = model.tables(POSITIONS)

    @torch.no_grad()
    def draw(self, turn: int) -> FindPool:
        """Pool number `turn`, a function of the seed; its states from the file where that has them."""
        rng = random.Random(f"{self.seed} find {turn}")
        told: list[tuple[list[int], list[Fact]]] = []
        count = 0
        while count < self.messages:
            ids, facts, some = self.threads.sequence(rng)
            count += some
            if facts:
                told.append((ids, facts))
        asked = [(self.threads.question(rng, fact), number) for number, (_, facts) in enumerate(told) for fact in facts for _ in range(2)]
        asked = [(q, number) for q, number in asked if q.value]
        begins = [0]
        for ids, _ in told:
            begins.append(begins[-1] + len(ids))
        places = [len(q.value) for q, _ in asked]
        tensors = self._read(turn, begins[-1], sum(places))
        if tensors is None:
            tensors = self._made([ids for ids, _ in told], [q for q, _ in asked])
            self._write(turn, tensors)
        return FindPool([facts for _, facts in told], begins, tensors[0], [q for q, _ in asked], [n for _, n in asked], list(tensors[1].split(places)))

    def _made(self, told: list[list[int]], asked: list[Question]) -> tuple[Tensor, Tensor]:
        head, _ = prefixed.window(self.model, self._ids(self.threads.head), [None] * len(self.layers), self.tables, self.layers[-1] + 1)
        said = self.states([q.ids[: q.value[-1] + 1] for q in asked], head)
        return torch.cat(self.states(told, head)), torch.cat([x[q.value] for x, q in zip(said, asked, strict=True)])

    def _ids(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor(ids, dtype=torch.long, device=self.model.device)

    def states(self, sequences: Sequence[Sequence[int]], head: list[prefixed.KV]) -> list[Tensor]:
        """What each memory would meet in each sequence behind the head, (t, l, d) each, float16 on the CPU."""
        out: list[Tensor] = [torch.empty(0)] * len(sequences)
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        for begin in range(0, len(order), TOGETHER):
            part = order[begin : begin + TOGETHER]
            ids = padded([sequences[i] for i in part], 0).to(self.model.device)  # (b, t)
            seen: list[prefixed.Seen] = []
            last = self.layers[-1]
            x = prefixed.layers(self.model, self.model.embed_tokens(ids), self.tables, [None] * len(self.layers), 0, last, head, None, seen)
            met = torch.stack([*(s.x for s in seen), x], dim=2).half().cpu()  # (b, t, l, d)
            for k, i in enumerate(part):
                out[i] = met[k, : len(sequences[i])].clone()
        return out

    def _file(self, turn: int) -> Path | None:
        return None if self.kept is None else self.kept / f"pool-{self.seed}-{turn}.pt"

    def _label(self) -> str:
        return json.dumps([self.key, list(self.layers), self.messages])

    def _read(self, turn: int, rows: int, places: int) -> tuple[Tensor, Tensor] | None:
        """The states of a file, or None where it is of something else, damaged or not there."""
        file = self._file(turn)
        if file is None or not file.exists():
            return None
        try:
            record = torch.load(file, map_location="cpu", weights_only=True)
            states, said = record["states"], record["said"]
            d = (len(self.layers), self.model.config.hidden_size)
            if record["of"] == self._label() and states.shape == (rows, *d) and said.shape == (places, *d) and states.dtype == said.dtype == torch.half:
                return states, said
        except Exception:
            return None
        return None

    def _write(self, turn: int, tensors: tuple[Tensor, Tensor]) -> None:
        file = self._file(turn)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            record = {"of": self._label(), "states": tensors[0], "said": tensors[1]}
            write_file(file, lambda f: torch.save(record, f))
