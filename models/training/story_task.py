"""One training step of a small model on stories: read chunk by chunk, ask after each, learn from every answer.

Knows the losses; the optimiser is run.py's. It begins with short plain stories until names are bound to places (`bound`); until then the first
memory's input is also asked for the name a sentence began with, without which binding takes ten times as long (docs/decisions.md).

Axes: b streams, c chunks, t positions of a chunk, q questions after a chunk, s positions of a question, d hidden.
"""

import random
from collections import deque
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ..lm2 import LM2
from ..memory import GatedMemory
from . import gates, passes, together
from .plan import Stage
from .run import Terms
from .stories import Batch, Stories

BOUND_AT, BOUND_OVER = 0.85, 600
PROBED = 40  # batches of 32 chunks the probes are fitted on
SIMPLE = Stage(1.0, 1, 1, 12)


class StoryTask:
    """Draws batches from `stories` and computes their loss. `weights`: share of each bAbI task once names are bound (`bound`: they are)."""

    aids: torch.nn.Module | None = None

    def __init__(
        self,
        model: LM2,
        stories: Stories,
        weights: dict[str, float],
        seed: int = 0,
        asked: int = 2,
        recompute: bool = False,
        bound: bool = False,
    ):
        self.model, self.stories, self.weights, self.asked, self.recompute = model, stories, weights, asked, recompute
        self.seed = seed
        self.probes: list[gates.Probe] = []
        self._recent: deque[bool] = deque(maxlen=BOUND_OVER)
        self._seen: list[Tensor] = []
        first = model.blocks[model.config.memory.layers[0]].memory
        assert first is not None
        first.register_forward_pre_hook(lambda module, inputs: self._seen.append(inputs[0]))
        self._bind(bound)

    def _bind(self, bound: bool) -> None:
        self.bound = bound
        self.stories.simple = not bound
        self.stories.weights = self.weights if bound else {"qa1": 1.0}

    def state(self) -> dict[str, Any]:
        return {"bound": self.bound, "recent": list(self._recent)}

    def restore(self, state: dict[str, Any]) -> None:
        self._recent.extend(state["recent"])
        self._bind(state["bound"])

    def step(self, stage: Stage, rng: random.Random) -> Terms:
        """The loss of one batch, to be differentiated."""
        ready = len(self._recent) == BOUND_OVER and sum(self._recent) > BOUND_AT * BOUND_OVER
        if not self.bound and together.any_of(ready, self.model.device):  # all processes at once: their weights stay equal
            self._bind(True)
            self._probe()
        stage = stage if self.bound else SIMPLE
        chunks = rng.randint(stage.least, stage.most) if rng.random() < 0.4 else stage.most
        terms = self.loss(self.stories.batch(rng, stage.batch, chunks, self.asked if self.bound else 2 * self.asked))
        self._recent.extend(terms.hits.get("qa1", ()))
        return terms

    @torch.no_grad()
    def _probe(self) -> None:
        """Start the input gates from linear probes for the last two tokens of a fact, now that these know what the sentence says (gates.py)."""
        rng = random.Random(f"{self.seed} probe")
        memories = [cast(GatedMemory, self.model.blocks[i].memory) for i in self.model.config.memory.layers]
        seen: list[list[Tensor]] = [[] for _ in memories]
        marks = []
        for _ in range(PROBED):
            batch = self.stories.batch(rng, 32, 1, 1)
            present = torch.arange(batch.ids.shape[2]) < torch.from_numpy(batch.lengths[:, 0])[:, None]  # (b, t)
            marks.append(torch.from_numpy(batch.ends[:, 0])[present])
            hooks = [
                m.register_forward_pre_hook(
                    lambda module, inputs, j=j, present=present: seen[j].append(module.norm(inputs[0]).cpu()[present])
                )
                for j, m in enumerate(memories)
            ]
            x = self.model.embed_tokens(torch.from_numpy(batch.ids[:, 0]).to(self.model.device))
            passes.read(self.model, x, list(self.model.initial_bank(32)), [None] * len(memories), 0, present.to(x.device))
            for hook in hooks:
                hook.remove()
        self._seen.clear()
        for memory, states in zip(memories, seen, strict=True):
            with torch.enable_grad():
                found = gates.fit(torch.cat(states), torch.cat(marks), self.seed)
            self.probes.append(found)
            gates.install(memory, found)

    def loss(self, batch: Batch) -> Terms:
        """Cross-entropy of the answers' tokens, and the mean input gate on tokens that tell nothing."""
        model = self.model
        b, chunks, t = batch.ids.shape
        device = model.device
        banks = list(model.initial_bank(b))
        reads = passes.keys_values(model, banks)
        sums, counts, copies, quiet, loud = [], [], [], [], []
        hits: dict[str, list[bool]] = {}
        places = torch.arange(t, device=device)
        for c in range(chunks):
            if c == chunks - 1:
                loss, count = self._within(batch, reads)
                sums.append(loss)
                counts.append(count)
            length = torch.from_numpy(batch.lengths[:, c]).to(device)
            if length.any():
                present = places < length[:, None]  # (b, t)
                gates: list[Tensor] = []
                x = model.embed_tokens(torch.from_numpy(batch.ids[:, c]).to(device))  # (b, t, d)
                first = model.first_row(c)
                banks = passes.read(model, x, banks, reads, first, present, gates=gates, recompute=self.recompute)
                reads = passes.keys_values(model, banks)
                facts = torch.from_numpy(batch.facts[:, c]).to(device)
                quiet += [g[present & ~facts].mean() for g in gates if bool((present & ~facts).any())]
                loud += [g[facts].mean().detach() for g in gates if bool(facts.any())]
                copies += self._copied(batch.subjects[:, c])
            targets = torch.from_numpy(batch.targets[:, c]).to(device)  # (b, q, s)
            if (targets >= 0).any():
                asked = model.embed_tokens(torch.from_numpy(batch.asked[:, c]).to(device))  # (b, q, s, d)
                h = passes.answer(model, asked, reads)
                copies += self._copied(batch.asked_subjects[:, c])
                chosen = targets >= 0
                logits, wanted = model.lm_head(h[chosen]), targets[chosen]
                sums.append(F.cross_entropy(logits, wanted, reduction="sum"))
                counts.append(chosen.sum())
                right = torch.zeros_like(chosen)
                right[chosen] = logits.argmax(-1) == wanted
                whole = ((right == chosen).all(-1) & chosen.any(-1)).tolist()
                for i, row in enumerate(whole):
                    for k, ok in enumerate(row):
                        if batch.tasks[i][c][k]:
                            hits.setdefault(batch.tasks[i][c][k], []).append(ok)
        self._seen.clear()
        loss = torch.stack(sums).sum() / torch.stack(counts).sum()
        if copies:
            loss = loss + torch.stack(copies).mean()
        zero = loss.new_zeros(())
        return Terms(
            loss,
            torch.stack(quiet).mean() if quiet else zero,
            {"gate_on_facts": float(torch.stack(loud).mean()) if loud else 0.0},
            hits,
            int(batch.lengths.sum()),
        )

    def _within(self, batch: Batch, reads: passes.Reads) -> tuple[Tensor, Tensor]:
        """Half the weight of the same kind of answer given within the chunk that tells it."""
        targets = torch.from_numpy(batch.local_targets).to(self.model.device)
        chosen = targets >= 0
        h = passes.answer(self.model, self.model.embed_tokens(torch.from_numpy(batch.local).to(self.model.device))[:, None], reads)[:, 0]
        loss = F.cross_entropy(self.model.lm_head(h[chosen]), targets[chosen], reduction="sum")
        return 0.5 * loss, 0.5 * chosen.sum()

    def _copied(self, subjects: Any) -> list[Tensor]:
        """How well the first memory's input tells the name its sentence began with."""
        wanted = torch.from_numpy(subjects).to(self.model.device)
        chosen = wanted >= 0
        if self.bound or not chosen.any():
            return []
        x = self._seen[-1].reshape(*wanted.shape, -1)
        return [F.cross_entropy(self.model.lm_head(self.model.norm(x[chosen])), wanted[chosen])]
