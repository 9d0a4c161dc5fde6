"""One training step of a memory for people: questions behind a window, of facts that stand in a bank of threads. The backbone is frozen.

Knows pools, banks and losses; what is said is threads.py's, how it is read prefixed.py's and banks.py's. What the layers below the first memory make
of threads and questions never changes and is computed once a pool. Four terms: the answers' tokens (values three times); where memories look when a
value's token is said: at that token's row, or at least at its message; the distance to the backbone's own next tokens where no memory helps; the
input gates on what tells nothing.

Axes: q questions, t positions, p chosen places, n rows, d hidden, h memory heads, v vocabulary.
"""

import random
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..lm2 import LM2
from . import banks, gates, prefixed, start
from .plan import Stage
from .pools import Group, Pool, Pools, padded
from .run import Terms
from .threads import MESSAGE_SHARE, Question, Threads

VALUE_WEIGHT, LOOK_WEIGHT, KL_WEIGHT = 3.0, 1.0, 6.0
KL_TOKENS = 160
BESIDE = 0.5  # of what no memory helps with, in a window whose talk the bank holds, where there is such a window
ROUNDS = ((0, 0.6), (1, 0.15), (2, 0.1), (4, 0.1), (7, 0.05))  # how often a bank was gone round since


class NaturalTask:
    """sizes: threads with facts, threads without, groups of questions that need no memory; drawn anew every `renew` steps. recompute: as prefixed.py has it."""

    aids: torch.nn.Module | None = None

    def __init__(self, model: LM2, threads: Threads, seed: int, sizes: tuple[int, int, int] = (36, 10, 24), renew: int = 48, recompute: bool = False):
        self.model, self.threads, self.seed, self.renew, self.recompute = model, threads, seed, renew, recompute
        self.pools = Pools(model, threads, seed, sizes)
        self.below, self.last = model.config.memory.layers[0], model.config.memory.layers[-1]
        self.slots = model.config.memory.slots
        self.memories, self.tables = self.pools.memories, self.pools.tables
        self._steps = 0
        self._pool: Pool | None = None
        self._drawn: dict[str, Tensor] = {}  # the memory's parameters when the pool was drawn

    def _parameters(self) -> dict[str, Tensor]:
        return {f"{j}.{name}": p for j, memory in enumerate(self.memories) for name, p in memory.named_parameters()}

    def state(self) -> dict[str, Any]:
        return {"steps": self._steps, "drawn": self._drawn}

    def restore(self, state: dict[str, Any]) -> None:
        self._steps, self._drawn, self._pool = state["steps"], state.get("drawn", {}), None

    @torch.no_grad()
    def _fill(self) -> Pool:
        """The pool of this step: a new one when it is time, or after a restart the one of the last draw, made with the memory as it was then."""
        turn, own = self._steps // self.renew, self._parameters()
        if self._steps % self.renew == 0 or not self._drawn:
            self._drawn = {name: p.clone() for name, p in own.items()}
            return self.pools.draw(turn)
        now = {name: p.clone() for name, p in own.items()}
        _set(own, self._drawn)
        made = self.pools.draw(turn)
        _set(own, now)
        return made

    @torch.no_grad()
    def probe(self, layers: Sequence[int] | None = None, threads: int = 60) -> list[gates.Probe]:
        """Start the input gates of these layers' memories (None: of all) from a linear probe for messages that tell facts (gates.py). For new
        memories, before the first step."""
        rng = random.Random(f"{self.seed} probe")
        drawn = [self.threads.thread(rng, 300, rng.choice((0.1, 0.5, 0.8))) for _ in range(threads)]
        kept = [banks.keep(self.model, thread, prefixed.unread(self.model), self.tables) for thread in drawn]
        told = torch.tensor([q == 0 for k in kept for q in k.thread.quiet[k.thread.head :]])  # (n,)
        probes = []
        for j, (layer, memory) in enumerate(zip(self.model.config.memory.layers, self.memories, strict=True)):
            if layers is not None and layer not in layers:
                continue
            states = torch.cat([memory.norm(k.x[j]) for k in kept]).cpu()  # (n, d)
            with torch.enable_grad():
                probes.append(gates.fit(states, told, self.seed))
            gates.install(memory, probes[-1])
        return probes

    @torch.no_grad()
    def begin_topics(self, threads: int = 40) -> None:
        """Start new topics from threads with facts and questions for them."""
        rng = random.Random(f"{self.seed} topics")
        unread = prefixed.unread(self.model)
        features, asked = [], []
        for _ in range(threads):
            thread = self.threads.thread(rng, 300, 0.8)
            told = banks.keep(self.model, thread, unread, self.tables).features
            assert told is not None
            features.append(told)
            for fact in thread.facts[:3]:
                met: list[Tensor] = []
                ids = [*self.threads.head, *self.threads.question(rng, fact).ids]
                prefixed.window(self.model, torch.tensor(ids, device=self.model.device), unread, self.tables, self.below, met)
                asked.append(met[1][0, len(self.threads.head) + 8 :])
        start.begin_topics(self.model, torch.cat(features), torch.cat(asked), self.seed)

    @torch.no_grad()
    def begin_words(self, threads: int = 24) -> None:
        """Start what values have of the topics' rows from threads with facts, once the topics themselves have begun."""
        topics = self.model.topics
        assert topics is not None
        rng = random.Random(f"{self.seed} words")
        kept = [banks.keep(self.model, self.threads.thread(rng, 300, 0.6), prefixed.unread(self.model), self.tables) for _ in range(threads)]
        rows = torch.cat([topics.write(k.features.float()) for k in kept if k.features is not None])  # (n, d)
        ids = torch.tensor([i for k in kept for i in k.thread.ids[k.thread.head :]])  # (n,)
        loudness = [float(torch.cat([k.x[j] for k in kept]).norm(dim=-1).mean()) for j in range(len(self.memories))]
        start.begin_words(self.model, rows, ids, loudness)

    def step(self, stage: Stage, rng: random.Random) -> Terms:
        """The mean loss of `stage.batch` banks, to be differentiated."""
        if self._pool is None or self._steps % self.renew == 0:
            self._pool = self._fill()
        self._steps += 1
        made = [self._bank(rng, self._pool) for _ in range(stage.batch)]
        hits: dict[str, list[bool]] = {}
        for terms in made:
            for kind, right in terms.hits.items():
                hits.setdefault(kind, []).extend(right)
        figures = {name: sum(t.figures[name] for t in made) / len(made) for name in made[0].figures}
        loss, quiet = torch.stack([t.loss for t in made]).mean(), torch.stack([t.quiet for t in made]).mean()
        return Terms(loss, quiet, figures, hits, sum(t.tokens for t in made))

    def _bank(self, rng: random.Random, pool: Pool) -> Terms:
        """The loss of the questions of one bank."""
        chosen, first, parts = self._threads(rng, pool)
        n = sum(len(p.new[0]) for p in parts)
        old = self._stale(rng, pool, n) if rng.random() < 0.5 else None
        times = rng.choices([r for r, _ in ROUNDS], [w for _, w in ROUNDS])[0]
        rounds = [self._round(rng, pool, n, live=i == times - 1) for i in range(times)]
        rows = banks.joined(parts, None if old is None else old.new, rounds)
        full = self.slots - n
        reads = banks.reads(self.memories, rows, rng.choice((0, 0, full, rng.randint(0, full))))
        quiet, loud = self._gates(pool, chosen, parts)
        answers, looks, hits = self._facts(rng, pool, chosen, first, reads, times)
        kl = self._nothing(rng, pool, chosen, reads)
        figures = {"answers": float(answers.detach()), "looks": float(looks.detach()), "kl": float(kl.detach()), "gate_on_facts": loud}
        loss = answers + LOOK_WEIGHT * looks + KL_WEIGHT * kl
        return Terms(loss, quiet, figures, hits, n)

    def _threads(self, rng: random.Random, pool: Pool) -> tuple[list[int], dict[int, int], list[banks.Written]]:
        """Threads of a bank, the first row of each, and what they write."""
        most = int(2 ** rng.uniform(7.3, 11.0))
        order = rng.sample(range(len(pool.kept)), len(pool.kept))
        order.insert(0, next(k for k in order if any(g.thread is not None and g.questions for g in _of(pool, k))))
        chosen: list[int] = []
        first: dict[int, int] = {}
        told: set[tuple[str, ...]] = set()
        rows = 0
        for number in dict.fromkeys(order):
            size = pool.kept[number].thread.rows
            if rows + size > self.slots or (chosen and rows + size > most):
                continue
            if any(fact.key in told for fact in pool.kept[number].thread.facts):
                continue
            told |= {fact.key for fact in pool.kept[number].thread.facts}
            chosen.append(number)
            rows += size
        rng.shuffle(chosen)
        at = 0
        for number in chosen:
            first[number] = at
            at += pool.kept[number].thread.rows
        return chosen, first, [banks.write(self.memories, pool.kept[number]) for number in chosen]

    def _stale(self, rng: random.Random, pool: Pool, n: int, others: bool = False) -> banks.Written:
        parts: list[banks.Written] = []
        rows = 0
        while rows < n:
            parts.append(pool.stale[rng.randrange(pool.told if others else 0, len(pool.stale))])
            rows += len(parts[-1].new[0])
        cut = rng.randint(0, rows - n)
        each = range(self.model.config.memory.banks)
        return banks.Written(
            [torch.cat([p.new[j] for p in parts])[cut : cut + n] for j in each], [torch.cat([p.forget[j] for p in parts])[cut : cut + n] for j in each], []
        )

    def _round(self, rng: random.Random, pool: Pool, n: int, live: bool) -> banks.Written:
        """Talk that tells nothing, over a whole bank; live: with gradients."""
        if not live:
            return self._stale(rng, pool, n, others=True)
        written = {k: banks.write(self.memories, pool.kept[k]) for k in range(pool.told, len(pool.kept))}
        parts = []
        rows = 0
        while rows < n:
            parts.append(written[rng.choice(list(written))])
            rows += len(parts[-1].new[0])
        each = range(self.model.config.memory.banks)
        return banks.Written(
            [torch.cat([p.new[j] for p in parts])[:n] for j in each], [torch.cat([p.forget[j] for p in parts])[:n] for j in each], []
        )

    def _gates(self, pool: Pool, chosen: Sequence[int], parts: Sequence[banks.Written]) -> tuple[Tensor, float]:
        """The mean input gate on what tells nothing, and on what tells facts."""
        marks = torch.cat([torch.tensor(pool.kept[k].thread.quiet[pool.kept[k].thread.head :]) for k in chosen]).to(self.model.device)  # (n,)
        means = [torch.cat([p.gate[j] for p in parts]).mean(-1) for j in range(len(self.memories))]  # (n,) each
        quiet = torch.stack([(mean * marks).sum() / marks.sum().clamp(min=1) for mean in means]).mean()
        told = marks == 0
        loud = float(torch.stack([mean[told].mean() for mean in means]).detach().mean()) if bool(told.any()) else 0.0
        return quiet, loud

    def _facts(
        self, rng: random.Random, pool: Pool, chosen: Sequence[int], first: dict[int, int], reads: prefixed.Reads, times: int
    ) -> tuple[Tensor, Tensor, dict[str, list[bool]]]:
        groups = [group for number in chosen if number < pool.told for group in pool.groups[number]]
        rng.shuffle(groups)
        answers: list[Tensor] = []
        weights: list[Tensor] = []
        looks: list[Tensor] = []
        hits: dict[str, list[bool]] = {}
        whole = short = 0
        for group in groups:
            through = whole < 14
            if not through and short >= 20:
                break
            if through:
                whole += len(group.questions)
            else:
                short += len(group.questions)
            questions = group.questions
            x = torch.nn.utils.rnn.pad_sequence(group.states, batch_first=True)  # (q, t, d)
            if not through:
                x = x[:, : max(q.value[-1] for q in questions) + 1]
            seen: list[prefixed.Seen] = []
            lately = None if group.lately is None else group.lately[:, : x.shape[1]]  # (q, t, f)
            end = len(self.model.layers) if through else self.last
            x = prefixed.layers(self.model, x, self.tables, reads, self.below, end, group.before, seen=seen, lately=lately, recompute=self.recompute)
            if not through:
                seen.append(prefixed.Seen(x, x))
            assert group.thread is not None
            looks.append(self._looks(questions, seen, reads, first[group.thread] - pool.kept[group.thread].thread.head, lately))
            if through:
                loss, weight, right = self._answers(questions, x)
                answers.append(loss)
                weights.append(weight)
                hits.setdefault(f"{times} rounds", []).extend(right)
        return torch.stack(answers).sum() / torch.stack(weights).sum(), torch.cat(looks).mean(), hits

    def _answers(self, questions: Sequence[Question], x: Tensor) -> tuple[Tensor, Tensor, list[bool]]:
        targets = padded([q.targets for q in questions], -100).to(x.device)  # (q, t)
        important = torch.zeros_like(targets, dtype=torch.bool)  # (q, t)
        for i, q in enumerate(questions):
            important[i, q.value] = True
        chosen = targets >= 0
        logits = self.model.lm_head(self.model.norm(x)[chosen])  # (p, v)
        weights = 1.0 + (VALUE_WEIGHT - 1.0) * important[chosen]
        loss = F.cross_entropy(logits, targets[chosen], reduction="none")  # (p,)
        right = torch.ones_like(chosen)
        right[chosen] = (logits.detach().argmax(-1) == targets[chosen]) | ~important[chosen]
        return (loss * weights).sum(), weights.sum(), right.all(-1).tolist()

    def _looks(
        self, questions: Sequence[Question], seen: Sequence[prefixed.Seen], reads: prefixed.Reads, shift: int, lately: Tensor | None = None
    ) -> Tensor:
        """How unlikely each memory looks where it should when a value's token is said, (l p,)."""
        places = [(i, p) for i, q in enumerate(questions) for p in q.value]
        assert reads.memories[0] is not None
        n = reads.memories[0][0].shape[2]
        message = torch.zeros(len(places), n)  # (p, n)
        token = torch.zeros(len(places), n)  # (p, n)
        weights = torch.ones(len(places))
        for row, (i, p) in enumerate(places):
            q = questions[i]
            assert q.fact is not None
            message[row, q.fact.begin + shift : q.fact.end + shift] = MESSAGE_SHARE
            number = q.value.index(p)
            if (own := q.told(number)) is not None:
                token[row, own + shift] = 1.0 - MESSAGE_SHARE
            weights[row] = 2.0 if number == 0 else 1.0 / len(q.value)
        message, token, weights = (value.to(self.model.device) for value in (message, token, weights))
        index = torch.tensor(places).T
        topics, added = self.model.topics, None
        if topics is not None and lately is not None and reads.around is not None:
            added = topics.looks(lately[index[0], index[1]][None], reads.around)[0]  # (p, n)
        out = []
        for j, (memory, met, read) in enumerate(zip(self.memories, seen, reads.memories, strict=True)):
            assert read is not None
            x = met.x[index[0], index[1]]  # (p, d)
            likely = prefixed.attention(memory, x, read[0], prefixed.gained(topics, added, j)).softmax(-1).mean(1)  # (p, n)
            out.append(-((likely * (message + token)).sum(-1) + 1e-5).log() * weights)
        return torch.cat(out)

    def _nothing(self, rng: random.Random, pool: Pool, chosen: Sequence[int], reads: prefixed.Reads) -> Tensor:
        """Mean divergence from the backbone's own next tokens where no memory helps. chosen: the threads of the bank."""
        beside = [g for g in pool.nothing if g.beside is not None and g.beside in chosen]
        group = rng.choice(beside if beside and rng.random() < BESIDE else pool.nothing)
        x = torch.nn.utils.rnn.pad_sequence(group.states, batch_first=True)  # (q, t, d)
        x = prefixed.layers(self.model, x, self.tables, reads, self.below, len(self.model.layers), group.before, lately=group.lately, recompute=self.recompute)
        places = [(i, p) for i, q in enumerate(group.questions) for p, target in enumerate(q.targets) if target >= 0]
        places = rng.sample(places, min(KL_TOKENS, len(places)))
        its = torch.stack([group.final[i][p] for i, p in places])  # (p, d)
        index = torch.tensor(places).T
        with torch.no_grad():
            teacher = F.log_softmax(self.model.lm_head(self.model.norm(its)), -1)  # (p, v)
        said = F.log_softmax(self.model.lm_head(self.model.norm(x[index[0], index[1]])), -1)  # (p, v)
        return (teacher.exp() * (teacher - said)).sum() / len(places)


def _of(pool: Pool, number: int) -> list[Group]:
    return pool.groups[number] if number < pool.told else []


def _set(parameters: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, p in parameters.items():
        p.copy_(values[name])
    torch.clear_autocast_cache()  # a step's own pass would otherwise multiply by halves made of the values before
