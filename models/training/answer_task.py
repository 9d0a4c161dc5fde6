"""Training steps that learn from answers alone, for LM2 and for what it is compared with: the same batches, the same questions, one loss.

No probes, no gate penalty, no row that is shown: only the tokens of an answer count. What LM2 needs beside that to learn BABILong's tasks is fact_task.py.
Axes: b streams, c chunks, t positions of a chunk or a segment, q questions, s positions of a question, d hidden.
"""

import random
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..baselines.model import Baseline
from ..lm2 import LM2
from . import passes
from .asked import AskedStreams, Batch
from .fact_task import BLOCKS, OFTEN
from .plan import Stage
from .ring import Rings
from .run import Terms
from .segments import segments

ASKED = 2  # questions at a border

Hits = dict[str, list[bool]]
Answered = Sequence[tuple[Tensor, Tensor, Sequence[Sequence[str]]]]


class _AnswerTask(ABC):
    """Draws batches; a batch depends on the run's generator alone, so that all models of one plan and seed get the same."""

    aids: torch.nn.Module | None = None

    def __init__(self, model: LM2, streams: AskedStreams):
        self.model, self.streams = model, streams

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        return None

    def step(self, stage: Stage, rng: random.Random) -> Terms:
        """The loss of one batch, to be differentiated. A stage's conflicts are the share of streams with a book between the facts."""
        chunks = stage.most if rng.random() < 0.6 else rng.randint(stage.least, stage.most)
        blocks = rng.choice(BLOCKS)
        batch = self.streams.batch(rng, stage.batch, chunks, ASKED, stage.conflicts, OFTEN)
        sums: list[Tensor] = []
        hits: Hits = defaultdict(list)
        count = 0
        for h, targets, tasks in self._answers(batch, blocks):
            chosen = targets >= 0
            logits, wanted = self.model.lm_head(h[chosen]), targets[chosen]
            sums.append(F.cross_entropy(logits, wanted, reduction="sum"))
            count += len(wanted)
            right = torch.zeros_like(chosen)
            right[chosen] = logits.argmax(-1) == wanted
            for row, whole in zip(tasks, (right == chosen).all(-1).tolist(), strict=True):
                for task, ok in zip(row, whole, strict=True):
                    if task:
                        hits[task].append(ok)
        zero = torch.zeros((), device=self.model.device)
        loss = torch.stack(sums).sum() / count if sums else sum((p.sum() * 0 for p in self.model.parameters()), zero)
        return Terms(loss, zero, {}, dict(hits), int(batch.lengths.sum()))

    @abstractmethod
    def _answers(self, batch: Batch, blocks: int) -> Answered:
        """For each place where something is asked: final states (b', q, s, d), targets (b', q, s), tasks (b', q)."""

    def _tensors(self, *arrays: np.ndarray) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(a).to(self.model.device) for a in arrays)


class MemoryAnswers(_AnswerTask):
    """LM2: chunks are read into the banks, each question is asked of them in a chunk of its own."""

    def _answers(self, batch: Batch, blocks: int) -> Answered:
        model = self.model
        b, chunks, t = batch.ids.shape
        rings, out = Rings(model, b, blocks), []
        places = torch.arange(t, device=model.device)
        for c in range(chunks):
            (length,) = self._tensors(batch.lengths[:, c])
            if length.any():
                rings.read(model.embed_tokens(self._tensors(batch.ids[:, c])[0]), c, places < length[:, None])
            asked = batch.asked[c]
            if asked is not None:
                ids, targets = self._tensors(asked.ids, asked.targets)  # (b', q, s)
                reads = rings.reads if len(asked.streams) == b else [(k[asked.streams], v[asked.streams]) for k, v in rings.reads]
                out.append((passes.answer(model, model.embed_tokens(ids), reads), targets, asked.tasks))
        return out


class SegmentAnswers(_AnswerTask):
    """A baseline: segments are read one after another, questions stand behind the text that was read of theirs. `blocks` means nothing here."""

    def _answers(self, batch: Batch, blocks: int) -> Answered:
        model = self.model
        assert isinstance(model, Baseline)
        memory, out = model.begin(len(batch.ids)), []  # (b, m, d)
        for part in segments(batch, model.baseline.segment):
            text, lengths = self._tensors(part.text, part.lengths)  # (b, t), (b,)
            if part.asked is None or part.targets is None or part.seen is None:
                memory, _ = model.segment(memory, text, lengths)
                continue
            asked, targets, seen = self._tensors(part.asked, part.targets, part.seen)
            memory, h = model.segment(memory, text, lengths, asked, seen)
            assert h is not None
            out.append((h, targets, part.tasks))
        return out
