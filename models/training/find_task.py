"""Finding alone: a memory learns which row to look at when a value's token is said. The backbone stands still; queries, keys and what rows are made of move.

A step multiplies by the memories' maps only, so that many more facts are seen than by answers (natural_task.py), which teach the rest. Pools of facts are
drawn as training goes on and all stay in use: a pool of its own is soon learned by heart. Knows pools and one loss.

Axes: p places of values, n rows, d hidden, h memory heads, e head width, l memories.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..lm2 import LM2
from ..memory import GatedMemory
from . import prefixed, start
from .find_pools import FindPool, FindPools
from .plan import Stage
from .run import Terms
from .threads import MESSAGE_SHARE, Question, Threads

FIRST, MOST = 3, 96  # pools there are at the first step, and at the most
DROPPED = 0.1  # of what queries and keys are made of
SLOW = 0.3  # of the rate, for what rows are made of
SHARP = 1.3  # how far a new memory's queries and keys are scaled up


LEARNED = ("q_proj", "kv_proj", "k_before_proj", "token_proj", "topics.write", "topics.query", "topics.gain")


class FindTask:
    """The topics are learned too, where there are any. messages: of a pool; at_once: sequences of a bank; renew: steps until another pool is drawn; kept: a folder for what pools are made of, by a
    backbone named `key`. Raises ValueError for a memory with `content: both`, whose rows are made of what was read as well."""

    aids: torch.nn.Module | None = None
    slow: ClassVar[dict[str, float]] = {".memory.token_proj": SLOW}

    def __init__(
        self, model: LM2, threads: Threads, seed: int, messages: int = 256, at_once: int = 48, renew: int = 60, kept: Path | None = None, key: str = ""
    ):
        if model.config.memory.content != "token":
            raise ValueError("finding is learned on rows that are made of their token alone: memory.content must be 'token'")
        self.model, self.seed, self.at_once, self.renew = model, seed, at_once, renew
        self.drawn = FindPools(model, threads, seed, messages, kept, key)
        self.memories = prefixed.memories(model)
        self._steps = 0
        self._pools: list[FindPool] = []
        for name, p in model.named_parameters():
            p.requires_grad_(any(f".memory.{part}" in name for part in LEARNED))
        for memory in self.memories:
            memory.kv_proj.weight.register_hook(lambda g: _half(g, first=True))
            memory.token_proj.weight.register_hook(lambda g: _half(g, first=False))

    def state(self) -> dict[str, Any]:
        return {"steps": self._steps}

    def restore(self, state: dict[str, Any]) -> None:
        self._steps, self._pools = state["steps"], []

    @torch.no_grad()
    def begin(self, layers: Sequence[int] | None = None) -> None:
        """Queries and keys of new memories (None: all), with `keys: pair`: both of one drawn map of the states, each channel of the same size, so that a
        place is found by the state before it that was most like the one now. A row's own part of its key begins small."""
        pool = self._have(0)
        generator = torch.Generator().manual_seed(self.seed)
        for j, (layer, memory) in enumerate(zip(self.model.config.memory.layers, self.memories, strict=True)):
            if memory.k_before_proj is None or (layers is not None and layer not in layers):
                continue
            u = memory.norm(pool.states[:, j].float().to(self.model.device))  # (n, d)
            rows = self._rows(memory, u)  # (n, d)
            d, inner = u.shape[1], memory.heads * memory.width
            drawn = torch.linalg.qr(torch.randn(max(d, inner), d, generator=generator))[0][:inner].to(u)  # (h e, d)
            middle = u.mean(0) / u.std(0)  # (d,)
            middle = middle / middle.norm()
            memory.q_proj.weight.copy_(SHARP * (drawn - (drawn @ middle)[:, None] * middle) / u.std(0))
            memory.k_before_proj.weight.copy_(SHARP * drawn / rows.std(0))
            memory.kv_proj.weight[:inner] = 0.1 * d**-0.5 * torch.randn(inner, d, generator=generator).to(u) / rows.std(0)

    @torch.no_grad()
    def begin_topics(self) -> None:
        """Start new topics from some pools."""
        pools = [self._have(i) for i in range(FIRST)]
        start.begin_topics(self.model, torch.cat([p.features for p in pools]), torch.cat([x for p in pools for x in p.lately]), self.seed)

    def _have(self, number: int) -> FindPool:
        while len(self._pools) <= number:
            self._pools.append(self.drawn.draw(len(self._pools)))
        return self._pools[number]

    def step(self, stage: Stage, rng: random.Random) -> Terms:
        """The loss over one bank of messages, to be differentiated."""
        count = min(FIRST + self._steps // self.renew, MOST)
        self._steps += 1
        self._have(count - 1)
        chosen: dict[tuple[int, int], None] = {}
        for _ in range(self.at_once):
            number = rng.randrange(count)
            chosen[number, rng.randrange(len(self._pools[number].facts))] = None
        loss, hits, rows = self.looks(list(chosen), DROPPED)
        return Terms(loss, loss.new_zeros(()), {"looks": float(loss.detach())}, hits, rows)

    @staticmethod
    def _rows(memory: GatedMemory, u: Tensor) -> Tensor:
        """Rows of normed states u (n, d), as the bank's norm leaves them."""
        i, z = memory.token_proj(u).chunk(2, dim=-1)  # (n, d) each
        out: Tensor = memory.bank_norm(torch.sigmoid(i + memory.input_bias) * torch.tanh(z))
        return out  # (n, d)

    def _topic_rows(self, x: Tensor, features: Tensor) -> Tensor:
        """Topics' rows (n, d) of tokens with these features (n, f), which the first memory meets as x (n, d)."""
        memory, topics = self.memories[0], self.model.topics
        assert topics is not None
        return memory.told(memory.said(x)[1]) * topics.write(features)  # (n, d)

    def looks(self, chosen: Sequence[tuple[int, int]], dropped: float = 0.0) -> tuple[Tensor, dict[str, list[bool]], int]:
        """How unlikely the memories look where they should in a bank of `chosen` sequences (pool, number), mean over values' tokens; of each memory,
        whether the first token's row gets the most attention; and the rows there were. Facts that are told twice are not asked for."""
        device = self.model.device
        counts: dict[tuple[str, ...], int] = {}
        for number_of, number in chosen:
            for fact in self._have(number_of).facts[number]:
                counts[fact.key] = counts.get(fact.key, 0) + 1
        told: list[Tensor] = []
        features: list[Tensor] = []
        said: list[Tensor] = []
        lately: list[Tensor] = []
        places: list[tuple[Question, int, int]] = []  # a question, which token of its value, the first row of its sequence
        n = 0
        for number_of, number in chosen:
            pool = self._pools[number_of]
            begin, end = pool.begins[number], pool.begins[number + 1]
            told.append(pool.states[begin:end])
            features.append(pool.features[begin:end])
            for i, q in enumerate(pool.questions):
                if pool.owner[i] == number and q.fact is not None and counts[q.fact.key] == 1:
                    said.append(pool.said[i])
                    lately.append(pool.lately[i])
                    places += [(q, k, n) for k in range(len(q.value))]
            n += end - begin
        wanted = torch.zeros(len(places), n)  # (p, n)
        weights, own = torch.ones(len(places)), torch.full((len(places),), -1)
        for row, (q, k, begin) in enumerate(places):
            assert q.fact is not None
            wanted[row, begin + q.fact.begin : begin + q.fact.end] = MESSAGE_SHARE
            if (place := q.told(k)) is not None:
                own[row] = begin + place
                wanted[row, begin + place] = 1.0
            weights[row] = 2.0 if k == 0 else 1.0 / len(q.value)
        wanted, weights, own = (value.to(device) for value in (wanted, weights, own))
        firsts = torch.tensor([k == 0 for _, k, _ in places], device=device) & (own >= 0)
        states, asked = torch.cat(told).to(device).float(), torch.cat(said).to(device).float()  # (n, l, d), (p, l, d)
        losses: list[Tensor] = []
        hits: dict[str, list[bool]] = {}
        topics, added = self.model.topics, None
        if topics is not None:
            near = topics.around(self._topic_rows(states[:, 0], torch.cat(features).to(device).float())[None])  # (1, n, d)
            added = topics.looks(torch.cat(lately).to(device).float()[None], F.dropout(near, dropped))[0]  # (p, n)
        for j, (layer, memory) in enumerate(zip(self.model.config.memory.layers, self.memories, strict=True)):
            rows = F.dropout(self._rows(memory, memory.norm(states[:, j])), dropped)  # (n, d)
            u = F.dropout(memory.norm(asked[:, j]), dropped)  # (p, d)
            inner = memory.heads * memory.width
            keys = F.linear(rows, memory.kv_proj.weight[:inner])  # (n, h e)
            if memory.k_before_proj is not None:
                keys = keys + memory.k_before_proj(rows.roll(1, dims=0))
            queries = memory.q_proj(u).view(-1, memory.heads, memory.width)  # (p, h, e)
            scores = torch.einsum("phe,nhe->phn", queries, keys.view(n, memory.heads, memory.width)) * memory.width**-0.5
            if (look := prefixed.gained(topics, added, j)) is not None:
                scores = scores + look[:, None]
            likely = scores.softmax(-1).mean(1)  # (p, n)
            losses.append((-((likely * wanted).sum(-1) + 1e-5).log() * weights).mean())
            hits[f"layer {layer}"] = (likely.detach().argmax(-1) == own)[firsts].tolist()
        return torch.stack(losses).mean(), hits, n


def _half(gradient: Tensor, first: bool) -> Tensor:
    """The gradient of two maps in one matrix, that of the other half left out."""
    out = gradient.clone()
    middle = len(out) // 2
    (out[middle:] if first else out[:middle]).zero_()
    return out
