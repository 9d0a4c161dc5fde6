"""Pools of told messages and of questions for them, as the backbone meets them: what its layers make of both never changes, so it is computed once.

A pool's texts are a function of the seed. Its states take a minute or two, so they are kept in a file each. Knows texts and hidden states; what a memory
makes of them is find_task.py's. Axes: t positions of a sequence, n rows, p places of values, l memories, d hidden, f features of topics (0 without).
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..atomic import write_file
from ..lm2 import LM2
from . import prefixed
from .pools import POSITIONS, padded
from .threads import Fact, Question, Threads

TOGETHER = 24  # sequences that are computed at once


class Met(NamedTuple):
    """Of one sequence: states (t, l, d), features (t, f), and their means lately (t, f)."""

    states: Tensor
    features: Tensor
    lately: Tensor


@dataclass
class FindPool:
    """facts of each sequence of messages, places counted in it; states (n, l, d) of all sequences one after the other, float16, and where each begins;
    features (n, f) likewise; questions, each one's sequence, states (p, l, d) where the tokens of its value are said, and what was talked of lately there
    (p, f)."""

    facts: list[list[Fact]]
    begins: list[int]
    states: Tensor
    features: Tensor
    questions: list[Question]
    owner: list[int]
    said: list[Tensor]
    lately: list[Tensor]


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
        states, said, features, lately = tensors
        questions, owner = [q for q, _ in asked], [n for _, n in asked]
        return FindPool([f for _, f in told], begins, states, features, questions, owner, list(said.split(places)), list(lately.split(places)))

    def _made(self, told: list[list[int]], asked: list[Question]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        head, _ = prefixed.window(self.model, self._ids(self.threads.head), prefixed.unread(self.model), self.tables, self.layers[-1] + 1)
        said = self.states([q.ids[: q.value[-1] + 1] for q in asked], head)
        rows = self.states(told, head)
        states, features = torch.cat([r.states for r in rows]), torch.cat([r.features for r in rows])
        places = list(zip(said, (q.value for q in asked), strict=True))
        return states, torch.cat([r.states[p] for r, p in places]), features, torch.cat([r.lately[p] for r, p in places])

    def _ids(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor(ids, dtype=torch.long, device=self.model.device)

    def states(self, sequences: Sequence[Sequence[int]], head: list[prefixed.KV]) -> list[Met]:
        """What each memory and the topics would meet in each sequence behind the head, float16 on the CPU."""
        out: list[Met] = [Met(torch.empty(0), torch.empty(0), torch.empty(0))] * len(sequences)
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        for begin in range(0, len(order), TOGETHER):
            part = order[begin : begin + TOGETHER]
            ids = padded([sequences[i] for i in part], 0).to(self.model.device)  # (b, t)
            seen: list[prefixed.Seen] = []
            met: list[Tensor] = []
            last = self.layers[-1]
            x = prefixed.layers(self.model, self.model.embed_tokens(ids), self.tables, prefixed.unread(self.model), 0, last, head, None, seen, met)
            states = torch.stack([*(s.x for s in seen), x], dim=2).half().cpu()  # (b, t, l, d)
            features, lately = (value.half().cpu() for value in met or [x[..., :0]] * 2)  # (b, t, f) each
            for k, i in enumerate(part):
                t = len(sequences[i])
                out[i] = Met(states[k, :t].clone(), features[k, :t].clone(), lately[k, :t].clone())
        return out

    def _file(self, turn: int) -> Path | None:
        return None if self.kept is None else self.kept / f"pool-{self.seed}-{turn}.pt"

    def _label(self) -> str:
        m = self.model.config.memory
        return json.dumps([self.key, list(self.layers), self.messages, list(m.topics), m.topic_back])

    def _read(self, turn: int, rows: int, places: int) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """The states of a file, or None where it is of something else, damaged or not there."""
        file = self._file(turn)
        if file is None or not file.exists():
            return None
        try:
            record = torch.load(file, map_location="cpu", weights_only=True)
            c = self.model.config
            d, f = (len(self.layers), c.hidden_size), len(c.memory.topics) * c.num_key_value_heads * c.head_dim
            shapes = {"states": (rows, *d), "said": (places, *d), "features": (rows, f), "lately": (places, f)}
            found = [record[name] for name in shapes]
            if record["of"] == self._label() and all(x.shape == s and x.dtype == torch.half for x, s in zip(found, shapes.values(), strict=True)):
                return found[0], found[1], found[2], found[3]
        except Exception:
            return None
        return None

    def _write(self, turn: int, tensors: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
        file = self._file(turn)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            record = {"of": self._label(), **dict(zip(("states", "said", "features", "lately"), tensors, strict=True))}
            write_file(file, lambda f: torch.save(record, f))
