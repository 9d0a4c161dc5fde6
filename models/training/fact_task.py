"""One training step of a small model on BABILong's tasks: read chunk by chunk, ask after some of them, learn from answers and from the rows themselves.

Knows the losses; the optimiser is run.py's. From answers alone a model of this size never learns more than one task of the five: it has to bind,
to follow who carries what, and to tell the latest row from older ones, all at once. So probes that are thrown away afterwards (`aids`) ask each
row what its sentence says and leaves true, how many facts came before, and the question's first memory input what is asked for; and heads of
every memory are shown which row to read: two the one that answers, or the last one about the same subject; a third the last one at all and a fourth
the last one about the same thing, by which rows of different subjects come to tell which is later (docs/decisions.md).

Axes: b streams, c chunks, t positions of a chunk, q questions of a stream, s positions of a question, n facts, d hidden.
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..lm2 import LM2
from ..memory import GatedMemory
from ..tasks.knowing import ASKED, CHOICES, LOCAL, UNKNOWN, Known, Wanted
from . import passes
from .facts import Asked, Batch, FactStreams, Told
from .plan import Stage
from .ring import Rings
from .run import Terms

BLOCKS = (4, 8, 16, 16, 16, 32)  # chunks until a row is written again, drawn for each batch
OFTEN = 0.6  # chunks after which something is asked
COUNTED = 64.0  # facts, as one unit of the count; at most COUNT_MOST facts are told apart
COUNT_MOST = 200
SUBJECT, LAST, THING = slice(0, 2), slice(2, 3), slice(3, 4)  # heads that are shown which row to read
SHOW_WEIGHT = 0.5

Part = tuple[Tensor, int]  # a mean, and of how many


class Aids(nn.Module):
    """The probes. say: of the first memory's input where a fact ends (what the sentence alone says); rows: one for each memory's rows; ask: of the
    first memory's input where an answer begins."""

    def __init__(self, width: int, memories: int):
        super().__init__()
        self.say = nn.Linear(width, sum(CHOICES))
        self.rows = nn.ModuleList(nn.Linear(width, sum(CHOICES) + 1) for _ in range(memories))  # and the count
        self.ask = nn.Linear(width, sum(ASKED))


class FactTask:
    """Draws batches from `streams` and computes their loss. A stage's conflicts are the share of streams with a book between the facts."""

    def __init__(self, model: LM2, streams: FactStreams, seed: int, asked: int = 2):
        self.model, self.streams, self.asked = model, streams, asked
        memories = [cast(GatedMemory, model.blocks[i].memory) for i in model.config.memory.layers]
        self.memories = memories
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.aids: nn.Module | None = Aids(model.config.hidden_size, len(memories)).to(model.device)
        self._seen: list[Tensor] = []
        for memory in memories:
            memory.register_forward_pre_hook(lambda module, inputs: self._seen.append(module.norm(inputs[0])))

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        return None

    def step(self, stage: Stage, rng: random.Random) -> Terms:
        """The loss of one batch, to be differentiated."""
        chunks = stage.most if rng.random() < 0.6 else rng.randint(stage.least, stage.most)
        blocks = rng.choice(BLOCKS)
        return self.loss(self.streams.batch(rng, stage.batch, chunks, self.asked, stage.conflicts, OFTEN), blocks)

    def loss(self, batch: Batch, blocks: int) -> Terms:
        """Cross-entropy of the answers' tokens and of every probe; as gate penalty the mean input gate of tokens that end no fact, and what is
        missing to an open one on those that do."""
        model, device = self.model, self.model.device
        b, chunks, t = batch.ids.shape
        rings = Rings(model, b, blocks)
        places = torch.arange(t, device=device)
        answers, asked, probes, shown, quiet, loud = [], [], list[Part](), list[Part](), [], []
        counts: list[Tensor] = []
        hits: dict[str, list[bool]] = defaultdict(list)
        for c in range(chunks):
            if c == chunks - 1:
                loss, count = self._within(batch, rings)
                answers.append(loss)
                counts.append(count)
            length = torch.from_numpy(batch.lengths[:, c]).to(device)
            if length.any():
                present = places < length[:, None]  # (b, t)
                ends = torch.from_numpy(batch.ends[:, c]).to(device)
                gates: list[Tensor] = []
                before = rings.reads
                rows = rings.read(model.embed_tokens(torch.from_numpy(batch.ids[:, c]).to(device)), c, present, gates)
                quiet += [g[present & ~ends].mean() for g in gates]
                if ends.any():
                    loud += [g[ends].mean() for g in gates]
                    probes += self._told(batch.told[c], rows)
                    shown += self._followed(batch.told[c], before, c, blocks)
                self._seen.clear()
            questions = batch.asked[c]
            if questions is not None:
                loss, count = self._answered(questions, rings, b, hits)
                answers.append(loss)
                counts.append(count)
                asked.append(self._named(questions))
                shown += self._found(questions, rings, c)
                self._seen.clear()
        zero = torch.zeros((), device=device)
        answer = torch.stack(answers).sum() / torch.stack(counts).sum().clamp(min=1)
        probe = _mean(probes, zero) + (torch.stack(asked).mean() if asked else zero)
        look = _mean(shown, zero)
        kept = torch.stack(loud).mean() if loud else zero + 1.0
        penalty = torch.stack(quiet).mean() + (1.0 - kept) if quiet else zero
        figures = {
            "answers": float(answer.detach()),
            "probes": float(probe.detach()),
            "rows_found": float((-look).detach().exp()),
            "gate_on_facts": float(kept.detach()),
        }
        return Terms(answer + probe + SHOW_WEIGHT * look, penalty, figures, dict(hits), int(batch.lengths.sum()))

    def _told(self, told: Told, rows: Sequence[Tensor]) -> list[Part]:
        """Each probe's loss, and for how many facts."""
        streams, places, known = self._tensors(told.streams, told.places, told.known)  # (n,), (n,), (n, Known and count)
        aids, number = cast(Aids, self.aids), len(known)
        local = torch.tensor([name in LOCAL for name in Known._fields], device=known.device)
        said = torch.where(local, known[:, :-1], UNKNOWN)
        out = [(_choices(aids.say(self._seen[0][streams, places]), said, CHOICES), number)]
        count = known[:, -1].clamp(max=COUNT_MOST) / COUNTED
        for memory, probe, row in zip(self.memories, aids.rows, rows, strict=True):
            found = probe(memory.bank_norm(row[streams, places]))  # (n, all choices and the count)
            out.append((_choices(found[:, :-1], known[:, :-1], CHOICES, 2 * F.mse_loss(found[:, -1], count)), number))
        return out

    def _followed(self, told: Told, reads: Sequence[tuple[Tensor, Tensor]], chunk: int, blocks: int) -> list[Part]:
        """How well each memory, where a fact ends, reads the last rows about the same subject and thing, and the last at all."""
        out = []
        for at, heads in ((told.subject, SUBJECT), (told.last, LAST), (told.thing, THING)):
            chosen = at[:, 0] >= max(0, chunk - blocks)
            streams, places, rows = self._tensors(told.streams[chosen], told.places[chosen], self._rows(at[chosen], blocks))
            out += self._looks([seen[streams, places] for seen in self._seen], reads, streams, rows, heads)
        return out

    def _found(self, asked: Asked, rings: Rings, chunk: int) -> list[Part]:
        """How well each memory, where an answer begins, reads the row that answers."""
        sources = asked.sources.reshape(-1, 2)
        chosen = sources[:, 0] > max(-1, chunk - rings.blocks)
        numbers = np.repeat(np.array(asked.streams), asked.ids.shape[1])
        streams, rows = self._tensors(numbers[chosen], self._rows(sources[chosen], rings.blocks))
        kept = torch.from_numpy(chosen).to(self.model.device)
        return self._looks([self._begins(asked, seen)[kept] for seen in self._seen], rings.reads, streams, rows, SUBJECT)

    def _looks(
        self, inputs: Sequence[Tensor], reads: Sequence[tuple[Tensor, Tensor]], streams: Tensor, rows: Tensor, heads: slice
    ) -> list[Part]:
        """Per memory, minus the log of the attention that some heads pay to `rows` (n,) of the banks of `streams`, inputs (n, d) each."""
        out = []
        for memory, u, (keys, _) in zip(self.memories, inputs, reads, strict=True):
            if len(rows):
                k = keys[streams, heads]  # (n, heads, N, e)
                q = memory.q_proj(u.to(keys.dtype)).view(len(u), memory.heads, 1, memory.width)[:, heads]  # (n, heads, 1, e)
                scores = (q @ k.transpose(2, 3))[:, :, 0].float() * memory.width**-0.5  # (n, heads, N)
                paid = scores.log_softmax(-1).gather(2, rows[:, None, None].expand(-1, k.shape[1], 1))
                out.append((-paid.mean(), len(rows)))
        return out

    def _rows(self, at: np.ndarray, blocks: int) -> np.ndarray:
        return at[:, 0] % blocks * self.model.config.memory.chunk + at[:, 1]

    def _tensors(self, *arrays: np.ndarray) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(a).to(self.model.device) for a in arrays)

    def _answered(self, asked: Asked, rings: Rings, b: int, hits: dict[str, list[bool]]) -> tuple[Tensor, Tensor]:
        """The sum of the answers' losses, and how many tokens they have."""
        model = self.model
        ids, targets = self._tensors(asked.ids, asked.targets)  # (b', q, s)
        reads = rings.reads if len(asked.streams) == b else [(k[asked.streams], v[asked.streams]) for k, v in rings.reads]
        h = passes.answer(model, model.embed_tokens(ids), reads)  # (b', q, s, d)
        chosen = targets >= 0
        logits, right_ids = model.lm_head(h[chosen]), targets[chosen]
        right = torch.zeros_like(chosen)
        right[chosen] = logits.argmax(-1) == right_ids
        for tasks, whole in zip(asked.tasks, (right == chosen).all(-1).tolist(), strict=True):
            for task, ok in zip(tasks, whole, strict=True):
                if task:
                    hits[task].append(ok)
        return F.cross_entropy(logits, right_ids, reduction="sum"), chosen.sum()

    def _within(self, batch: Batch, rings: Rings) -> tuple[Tensor, Tensor]:
        """Half the weight of answers given within the chunk that tells the last facts, and of the `Ok.` before."""
        ids, targets = self._tensors(batch.within, batch.within_targets)  # (b, t)
        h = passes.answer(self.model, self.model.embed_tokens(ids)[:, None], rings.reads)[:, 0]  # (b, t, d)
        self._seen.clear()
        chosen = targets >= 0
        return 0.5 * F.cross_entropy(self.model.lm_head(h[chosen]), targets[chosen], reduction="sum"), 0.5 * chosen.sum()

    def _named(self, asked: Asked) -> Tensor:
        """How well the first memory's input tells what is asked for, where the answer begins."""
        (wanted,) = self._tensors(asked.wanted)
        return _choices(cast(Aids, self.aids).ask(self._begins(asked, self._seen[0])), wanted.flatten(0, 1), ASKED)

    def _begins(self, asked: Asked, seen: Tensor) -> Tensor:
        """A memory's input where each answer begins, (b' q, d)."""
        (begins,) = self._tensors(asked.begins)
        at = begins[:, :, None, None].expand(-1, -1, 1, seen.shape[-1])
        return seen.view(*asked.ids.shape, -1).gather(2, at)[:, :, 0].flatten(0, 1)


def _mean(parts: Sequence[Part], zero: Tensor) -> Tensor:
    return sum((loss * number for loss, number in parts), zero) / max(1, sum(number for _, number in parts))


def _choices(logits: Tensor, labels: Tensor, sizes: Known | Wanted, *more: Tensor) -> Tensor:
    """Mean cross-entropy over the parts that any of the labels (n, parts) has; logits (n, all sizes side by side)."""
    losses = list(more)
    for j, part in enumerate(logits.split(list(sizes), dim=1)):
        if (labels[:, j] >= 0).any():
            losses.append(F.cross_entropy(part, labels[:, j], ignore_index=UNKNOWN))
    return torch.stack(losses).mean()
