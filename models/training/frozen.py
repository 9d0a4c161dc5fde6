"""A backbone that stands still, over many short texts at once, each in a window of its own that may open with keys and values. Nothing is padded.

Knows layers and ids; no memory, no task.

Axes: L layers, h query heads, k key/value heads, p positions of the opening, e head width, n tokens of all texts, d width, v vocabulary.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..llama import attend, rotate, table
from ..lm2 import LM2
from .plan import TrainError

TOKENS = 256  # of the vocabulary that `alone` reads at once


class Opened(Protocol):
    """What a window opens with."""

    @property
    def positions(self) -> int: ...

    def layer(self, i: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, (1, k, p, e) each."""
        ...


def states(
    model: LM2,
    tables: tuple[Tensor, Tensor],
    texts: Sequence[Sequence[int]],
    maps: Opened | None = None,
    kept: list[tuple[Tensor, Tensor]] | None = None,
    after: Sequence[int] | None = None,
) -> Tensor:
    """The backbone's last states (n, d) of the n tokens of all texts, each text in a window of its own. tables: of the model's positions.

    kept: receives the keys and values of each layer. after: instead, the states after so many layers, side by side (n, len(after) d), and no layer beyond
    the last of them is computed. Raises TrainError for a text that takes more than the positions of `tables`.
    """
    device, p = model.device, 0 if maps is None else maps.positions
    if (longest := p + max(map(len, texts))) > (most := len(tables[0])):
        raise TrainError(f"a question with its passages takes {longest} positions, of which {p} are the opening's; the model has {most}: take another")
    ends = np.cumsum([len(text) for text in texts])
    spans = list(zip(ends - [len(text) for text in texts], ends, strict=True))
    places = torch.tensor([p + i for text in texts for i in range(len(text))], device=device)  # (n,)
    cos, sin = (rows[places] for rows in tables)  # (n, e) each
    x = model.embed_tokens(torch.tensor([[i for text in texts for i in text]], device=device))  # (1, n, d)
    looked: list[Tensor] = []
    for i, block in enumerate(model.blocks if after is None else model.blocks[: max(after)]):
        attention = block.self_attn
        heads, groups, width = attention.heads, attention.groups, attention.width
        qkv = attention.project(block.input_layernorm(x).to(x.dtype)).view(1, -1, heads + 2 * groups, width).transpose(1, 2)  # (1, h + 2k, n, e)
        turned, v = qkv.split((heads + groups, groups), dim=1)
        if attention.turns is not None:
            turned = rotate(turned, *(table(rows, attention.turns, width) for rows in (cos, sin)))
        q, k = turned.split((heads, groups), dim=1)
        if kept is not None:
            kept.append((k, v))
        keys, values = (k[:, :, :0], v[:, :, :0]) if maps is None else maps.layer(i)  # (1, k, p, e) each
        seen = [
            attend(q[:, :, a:b], torch.cat((keys, k[:, :, a:b]), 2), torch.cat((values, v[:, :, a:b]), 2), window=attention.window) for a, b in spans
        ]
        x = block.finish(x, attention.output(torch.cat(seen, dim=2).transpose(1, 2).flatten(2)))  # (1, n, d)
        if after is not None and i + 1 in after:
            looked.append(x[0])
    if after is not None:
        return torch.cat(looked, dim=1)
    out: Tensor = model.norm(x).to(x.dtype)[0]
    return out  # (n, d)


@torch.no_grad()
def alone(model: LM2, first: int, after: Sequence[int]) -> Tensor:
    """Every token of the vocabulary as it stands alone behind `first`: its embedding and its states after so many layers, side by side (v, (1 + len(after)) d).

    Each number less its mean over the vocabulary, in its own standard deviation, at most 4 of them: a few numbers of a state are thousands.
    """
    tables, parts = model.tables(2), list[Tensor]()
    for begin in range(0, model.config.vocab_size, TOKENS):
        ids = range(begin, min(begin + TOKENS, model.config.vocab_size))
        parts.append(states(model, tables, [(first, i) for i in ids], after=after)[1::2])
    every = torch.cat((model.embed_tokens(torch.arange(model.config.vocab_size, device=model.device)), torch.cat(parts)), dim=1).float()
    every -= every.mean(0)
    return (every / every.std(0).clamp_min(1e-6)).clamp(-4, 4)
