"""Finding alone: queries and keys of a memory learn which row to look at when a value's token is said. The backbone and all that rows are made of stand still.

What the backbone makes of a message behind the head, and of a question with its answer, is computed once a pool; a step only multiplies by the maps of
queries and keys, so that many more facts are seen than by answers (natural_task.py), which teach the rest. Knows pools and one loss.

Axes: p places of values, n rows, d hidden, h memory heads, e head width, l memories.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..lm2 import LM2
from . import prefixed
from .plan import Stage
from .pools import POSITIONS, padded
from .run import Terms
from .threads import MESSAGE_SHARE, Fact, Question, Threads

TOGETHER = 24  # sequences that are computed at once


@dataclass
class Pool:
    """facts of each message; rows (n, d) of each message and memory, as the bank's norm leaves them; questions, the message of each, and what each
    memory's queries are made of at the places of its value, (p, d)."""

    facts: list[list[Fact]]
    rows: list[list[Tensor]]
    questions: list[Question]
    owner: list[int]
    states: list[list[Tensor]]


class FindTask:
    """messages of a pool; at_once: of a bank; epochs: how often a pool is gone through. Raises ValueError for a memory with `content: both`, whose
    rows are made of what was read as well."""

    aids: torch.nn.Module | None = None

    def __init__(self, model: LM2, threads: Threads, seed: int, messages: int = 384, at_once: int = 96, epochs: int = 4):
        if model.config.memory.content != "token":
            raise ValueError("finding is learned on rows that are made of their token alone: memory.content must be 'token'")
        self.model, self.threads, self.seed, self.messages, self.at_once = model, threads, seed, messages, at_once
        self.renew = epochs * max(1, messages // at_once)
        self.memories, self.tables = prefixed.memories(model), model.tables(POSITIONS)
        self.last = model.config.memory.layers[-1]
        self._steps = 0
        self._pool: Pool | None = None
        for name, p in model.named_parameters():
            p.requires_grad_(".memory.q_proj" in name or ".memory.kv_proj" in name)
        for memory in self.memories:
            memory.kv_proj.weight.register_hook(_keys_alone)

    def state(self) -> dict[str, Any]:
        return {"steps": self._steps}

    def restore(self, state: dict[str, Any]) -> None:
        self._steps, self._pool = state["steps"], None

    @torch.no_grad()
    def draw(self, turn: int) -> Pool:
        """Pool number `turn`, a function of the seed."""
        rng = random.Random(f"{self.seed} find {turn}")
        head, _ = prefixed.window(self.model, torch.tensor(self.threads.head, dtype=torch.long, device=self.model.device), self._unread(), self.tables, self.last + 1)
        told: list[tuple[list[int], list[Fact]]] = []
        while len(told) < self.messages:
            told += self.threads.messages(rng)
        rows: list[list[Tensor]] = []
        for met in self._states([ids for ids, _ in told], head):
            made = []
            for memory, x in zip(self.memories, met, strict=True):
                i, z = memory.token_proj(memory.norm(x)).chunk(2, dim=-1)  # (n, d) each
                made.append(memory.bank_norm(torch.sigmoid(i + memory.input_bias) * torch.tanh(z)))
            rows.append(made)
        asked = [(self.threads.question(rng, fact), number) for number, (_, facts) in enumerate(told) for fact in facts for _ in range(2)]
        asked = [(q, number) for q, number in asked if q.value]
        states: list[list[Tensor]] = []
        for (q, _), met in zip(asked, self._states([q.ids[: q.value[-1] + 1] for q, _ in asked], head), strict=True):
            states.append([memory.norm(x[q.value]) for memory, x in zip(self.memories, met, strict=True)])
        return Pool([facts for _, facts in told], rows, [q for q, _ in asked], [number for _, number in asked], states)

    def _unread(self) -> prefixed.Reads:
        return [None] * len(self.memories)

    def _states(self, sequences: Sequence[Sequence[int]], head: list[prefixed.KV]) -> list[list[Tensor]]:
        """What each memory would meet in each sequence behind the head, l of (t, d)."""
        out: list[list[Tensor]] = [[] for _ in sequences]
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        for begin in range(0, len(order), TOGETHER):
            part = order[begin : begin + TOGETHER]
            ids = padded([sequences[i] for i in part], 0).to(self.model.device)  # (b, t)
            seen: list[prefixed.Seen] = []
            x = prefixed.layers(self.model, self.model.embed_tokens(ids), self.tables, self._unread(), 0, self.last, head, None, seen)
            met = [*(s.x for s in seen), x]  # (b, t, d) each
            for k, i in enumerate(part):
                out[i] = [x[k, : len(sequences[i])].clone() for x in met]
        return out

    def step(self, stage: Stage, rng: random.Random) -> Terms:
        """The loss over one bank of messages, to be differentiated."""
        if self._pool is None or self._steps % self.renew == 0:
            self._pool = self.draw(self._steps // self.renew)
        self._steps += 1
        chosen = rng.sample(range(len(self._pool.rows)), min(self.at_once, len(self._pool.rows)))
        loss, hits, rows = self.looks(self._pool, chosen)
        return Terms(loss, loss.new_zeros(()), {"looks": float(loss.detach())}, hits, rows)

    def looks(self, pool: Pool, chosen: Sequence[int]) -> tuple[Tensor, dict[str, list[bool]], int]:
        """How unlikely the memories look where they should, mean over values' tokens; of each memory, whether the first token's row gets the most
        attention; and the rows there were. Facts that are told twice are not asked for."""
        first: dict[int, int] = {}
        n = 0
        for number in chosen:
            first[number] = n
            n += len(pool.rows[number][0])
        counts: dict[tuple[str, ...], int] = {}
        for number in chosen:
            for fact in pool.facts[number]:
                counts[fact.key] = counts.get(fact.key, 0) + 1
        asked = [i for i, q in enumerate(pool.questions) if q.fact is not None and pool.owner[i] in first and counts[q.fact.key] == 1]
        places = [(i, number) for i in asked for number in range(len(pool.questions[i].value))]
        wanted = torch.zeros(len(places), n)  # (p, n)
        weights, own = torch.ones(len(places)), torch.full((len(places),), -1)
        for row, (i, number) in enumerate(places):
            q, begin = pool.questions[i], first[pool.owner[i]]
            assert q.fact is not None
            wanted[row, begin : begin + q.fact.end] = MESSAGE_SHARE
            if (place := q.told(number)) is not None:
                own[row] = begin + place
                wanted[row, begin + place] = 1.0
            weights[row] = 2.0 if number == 0 else 1.0 / len(q.value)
        wanted, weights, own = (value.to(self.model.device) for value in (wanted, weights, own))
        begins = torch.tensor([number == 0 for _, number in places], device=self.model.device) & (own >= 0)
        losses: list[Tensor] = []
        hits: dict[str, list[bool]] = {}
        for j, (layer, memory) in enumerate(zip(self.model.config.memory.layers, self.memories, strict=True)):
            width = memory.heads * memory.width
            rows = torch.cat([pool.rows[number][j] for number in chosen])  # (n, d)
            states = torch.cat([pool.states[i][j] for i in asked])  # (p, d)
            keys = F.linear(rows, memory.kv_proj.weight[:width]).view(n, memory.heads, memory.width)  # (n, h, e)
            queries = memory.q_proj(states).view(-1, memory.heads, memory.width)  # (p, h, e)
            likely = (torch.einsum("phe,nhe->phn", queries, keys) * memory.width**-0.5).softmax(-1).mean(1)  # (p, n)
            losses.append((-((likely * wanted).sum(-1) + 1e-5).log() * weights).mean())
            hits[f"layer {layer}"] = (likely.detach().argmax(-1) == own)[begins].tolist()
        return torch.stack(losses).mean(), hits, n


def _keys_alone(gradient: Tensor) -> Tensor:
    """The gradient of keys and values in one matrix, that of the values' half left out."""
    out = gradient.clone()
    out[len(out) // 2 :] = 0
    return out
