"""A start for the input gates: a linear probe that tells tokens worth keeping from the others, put into the gates' weights.

Knows hidden states and labels of tokens. Gradients through many chunks find the same direction, but slowly: an input gate that starts at
-7 on other talk and +3 on facts is what lets training go on to long distances at once (docs/decisions.md).

Axes: n tokens, d hidden.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..memory import GatedMemory

STEPS, TOKENS, RATE, DECAY, KEPT_WEIGHT = 400, 4096, 0.02, 1e-4, 2.0


class Probe(NamedTuple):
    """weight (d,), bias (): the logit of keeping. caught, false_alarms: shares on a tenth of the tokens held out."""

    weight: Tensor
    bias: Tensor
    caught: float
    false_alarms: float


def fit(states: Tensor, keep: Tensor, seed: int) -> Probe:
    """Logistic regression of keep (n,) bool on states (n, d), the memory's normed inputs, on the CPU; Adam on drawn batches, scaled per
    dimension. A function of its arguments alone."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(states), generator=generator)
    states, labels = states[order].float(), keep[order].float()
    cut = len(states) * 9 // 10
    deviation = states.std(0) + 1e-3  # (d,)
    weight = torch.zeros(states.shape[1], requires_grad=True)
    bias = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=RATE)
    for _ in range(STEPS):
        chosen = torch.randint(0, cut, (TOKENS,), generator=generator)
        logits = states[chosen] / deviation @ weight + bias
        loss = F.binary_cross_entropy_with_logits(logits, labels[chosen], pos_weight=torch.tensor(KEPT_WEIGHT))
        loss = loss + DECAY * weight.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        said = states[cut:] / deviation @ weight + bias > 0
        true = labels[cut:] > 0
        caught = (said & true).sum() / true.sum().clamp(min=1)
        alarms = (said & ~true).sum() / (~true).sum().clamp(min=1)
        return Probe((weight / deviation).detach(), bias.detach(), float(caught), float(alarms))


@torch.no_grad()
def install(memory: GatedMemory, probe: Probe) -> None:
    """Every row of the input gate becomes the probe, plus a tenth of what it was (rows stay different)."""
    d, rows = len(probe.weight), memory.token_proj.weight
    rows[:d] = probe.weight.to(rows) + 0.1 * rows[:d]
    memory.input_bias.copy_(probe.bias)
