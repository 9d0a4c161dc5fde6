"""What answers cost: the loss of their tokens, and how far an answer that needs no memory is from the backbone's own.

Knows questions and hidden states; chunks and banks are talk_task.py's. The questions of a stream stand side by side in one row, since
padding each to the longest of a step would be a third of the work.

Axes: b streams, t places of a row, d hidden, p chosen places, v vocabulary.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..lm2 import LM2
from . import passes
from .talks import IGNORED, Asked, padded

KL_TOKENS = 256  # places of a step that are compared with the backbone
VALUE_WEIGHT = 3.0


@dataclass(frozen=True)
class Span:
    """Where a question stands: places begin to end of a row."""

    row: int
    begin: int
    end: int
    asked: Asked

    def __len__(self) -> int:
        return self.end - self.begin


@dataclass(frozen=True)
class Sheet:
    """The questions of all streams. ids, targets, weights, ordinary: (b, t); spans: of each stream's questions, in order."""

    rows: passes.Rows
    ids: Tensor
    targets: Tensor
    weights: Tensor
    ordinary: Tensor
    spans: list[list[Span]]


def laid_out(asked: Sequence[Sequence[Asked]], device: torch.device) -> Sheet:
    """The questions of b streams as b rows."""
    spans: list[list[Span]] = []
    for i, row in enumerate(asked):
        ends = np.cumsum([len(a.ids) for a in row]).tolist()
        spans.append([Span(i, end - len(a.ids), end, a) for a, end in zip(row, ends, strict=True)])

    def table(rows: list[list[float]], fill: float, dtype: type) -> Tensor:
        return torch.from_numpy(padded(rows, fill, dtype)).to(device)  # (b, t)

    return Sheet(
        passes.side_by_side([[len(s) for s in row] for row in spans], device),
        table([[n for a in row for n in a.ids] for row in asked], 0, np.int64),
        table([[n for a in row for n in a.targets] for row in asked], IGNORED, np.int64),
        table([[w for a in row for w in a.weights] for row in asked], 0.0, np.float32),
        table([[a.ordinary for a in row for _ in a.ids] for row in asked], False, np.bool_),
        spans,
    )


def answers(model: LM2, h: Tensor, sheet: Sheet) -> tuple[Tensor, list[list[bool]]]:
    """Weighted cross-entropy of the answers to questions for facts, from final states h (b, t, d); and, for each stream, whether every
    token of each value would have been said (True for what is not a question for a fact)."""
    chosen = (sheet.targets >= 0) & ~sheet.ordinary  # (b, t)
    logits = model.lm_head(h[chosen]).float()  # (p, v)
    targets, weights = sheet.targets[chosen], sheet.weights[chosen]
    losses = F.cross_entropy(logits, targets, reduction="none")  # (p,)
    right = torch.ones_like(chosen)
    right[chosen] = (logits.argmax(-1) == targets) | (weights < VALUE_WEIGHT)
    hits = [[bool(right[s.row, s.begin : s.end].all()) for s in row] for row in sheet.spans]
    return (losses * weights).sum() / weights.sum(), hits


def distance(model: LM2, below: Tensor, h: Tensor, sheet: Sheet, begin: int, rng: random.Random) -> Tensor:
    """Mean KL divergence of next tokens from the backbone without its memory, over drawn places of what needs none.

    below (b, t, d): hidden states under layer `begin`; h (b, t, d): final ones, with the memory.
    """
    spans = [s for row in sheet.spans for s in row if s.asked.ordinary]
    bins = _bins(spans, below.shape[1])
    alone = below.new_zeros(len(bins), max(sum(len(s) for s in row) for row in bins), below.shape[2])
    own, its = [], []  # places of h, and the same ones of `alone`
    for i, row in enumerate(bins):
        at = 0
        for s in row:
            alone[i, at : at + len(s)] = below[s.row, s.begin : s.end]
            for k, target in enumerate(s.asked.targets):
                if target >= 0:
                    own.append((s.row, s.begin + k))
                    its.append((i, at + k))
            at += len(s)
    drawn = sorted(rng.sample(range(len(own)), min(KL_TOKENS, len(own))))
    (a, b), (c, d) = (torch.tensor([places[k] for k in drawn], device=h.device).T for places in (own, its))
    with torch.no_grad():
        rows = passes.side_by_side([[len(s) for s in row] for row in bins], h.device)
        plain = passes.answer_rows(model, alone, [None] * len(model.bank_of), rows, begin)
        teacher = F.log_softmax(model.lm_head(plain[c, d]).float(), -1)  # (p, v)
    said = F.log_softmax(model.lm_head(h[a, b]).float(), -1)  # (p, v)
    return (teacher.exp() * (teacher - said)).sum() / len(drawn)


def _bins(spans: Sequence[Span], width: int) -> list[list[Span]]:
    """Rows of at most `width` places (or one span), first fit."""
    bins: list[list[Span]] = []
    for s in sorted(spans, key=len, reverse=True):
        for row in bins:
            if sum(len(other) for other in row) + len(s) <= width:
                row.append(s)
                break
        else:
            bins.append([s])
    return bins
