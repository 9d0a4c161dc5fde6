"""Changes of a backbone's matrices while they are learned: a matrix that stands still, and two thin factors that are added to it.

Knows modules and parameters; the files' side is models/changes.py. Axes: o outputs, i inputs, r rank.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..changes import GROUPS, INSIDE, OUT
from ..lm2 import LM2


class Changed(nn.Linear):
    """A linear layer with W + change_out change_in for its W, or W alone where `on` is False. change_out begins at zero, so that nothing is changed."""

    def __init__(self, plain: nn.Linear, rank: int, generator: torch.Generator):
        super().__init__(plain.in_features, plain.out_features, plain.bias is not None, device="meta")
        self.weight, self.bias = plain.weight, plain.bias
        drawn = torch.randn(rank, plain.in_features, generator=generator) * plain.in_features**-0.5  # (r, i)
        self.change_in = nn.Parameter(drawn.to(plain.weight.device))
        self.change_out = nn.Parameter(torch.zeros(plain.out_features, rank, device=plain.weight.device))  # (o, r)
        self.on = True

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y + F.linear(F.linear(x, self.change_in), self.change_out) if self.on else y


def install(model: LM2, seed: int) -> None:
    """Give the layers that the config names their changes, which change nothing yet."""
    memory = model.config.memory
    if not memory.low_rank:
        return
    generator = torch.Generator().manual_seed(seed)
    for layer in range(memory.low_rank_from, model.config.num_hidden_layers):
        for group in GROUPS:
            owner, _, name = group.partition(".")
            part = cast(nn.Module, getattr(model.blocks[layer], owner))
            setattr(part, name, Changed(getattr(part, name), memory.low_rank, generator))


def slots(model: LM2) -> Iterator[tuple[str, Tensor]]:
    """Every factor by its name on disk, as a view: writing it writes the model."""
    for name, p in parameters(model):
        yield f"model.{name}", p.data


def parameters(model: LM2) -> Iterator[tuple[str, nn.Parameter]]:
    """Every factor by its name in the model."""
    for name, p in model.named_parameters():
        if name.endswith((INSIDE, OUT)):
            yield name, p


def lowest(model: LM2) -> int:
    """The first layer with a memory or a change: what lies below it never changes."""
    memory = model.config.memory
    return min(memory.layers[0], memory.low_rank_from) if memory.low_rank else memory.layers[0]


@contextmanager
def unchanged(model: LM2) -> Iterator[None]:
    """The backbone as it was, for as long as the context lasts."""
    changed = [m for m in model.modules() if isinstance(m, Changed) and m.on]
    for m in changed:
        m.on = False
    try:
        yield
    finally:
        for m in changed:
            m.on = True
