"""Differentiable passes through a chunk for training: reading text into the banks, and asking questions of banks without changing them.

Same numbers as `LM2.forward` (a test holds them together), less work: layers above the last memory are skipped where nothing is asked,
and several questions share one bank's keys and values. Cell gated only.

Axes: b batch, t positions, q questions of one bank, n rows, d hidden, l banks, v vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..lm2 import LM2, Block
from ..memory import GatedMemory

Reads = Sequence[tuple[Tensor, Tensor] | None]


def whole(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """A cache that holds nothing: keys and values as they come."""
    return k, v


def keys_values(model: LM2, banks: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """K and V of every bank, (b, h, n, e) each: to be shared by all that read these banks."""
    return [cast(GatedMemory, model.blocks[i].memory).keys_values(banks[j], model.dtype) for i, j in model.bank_of.items()]


def read(
    model: LM2,
    x: Tensor,
    banks: list[Tensor],
    reads: Reads,
    first: int,
    present: Tensor,
    begin: int = 0,
    gates: list[Tensor] | None = None,
    recompute: bool = False,
) -> list[Tensor]:
    """Run hidden states x (b, t, d) of one chunk from layer `begin` to the last memory; returns the banks, l of (b, n, d), after the chunk.

    reads: `keys_values` of the banks. first: row of position 0. present (b, t): True where there is a token; the others' rows keep
    their content. `gates` collects each memory's input gate, (b, t, d). recompute: keep no activations of the chunk, compute them again
    when differentiating.
    """
    if recompute and torch.is_grad_enabled():

        def chunk(x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
            inside: list[Tensor] = []
            after = read(model, x, list(state), reads, first, present, begin, inside if gates is not None else None)
            return (*after, *inside)

        out = checkpoint(chunk, x, *banks, use_reentrant=False)
        if gates is not None:
            gates += out[len(banks) :]
        return list(out[: len(banks)])
    cos, sin = (table[: x.shape[1]] for table in model.tables())
    banks = list(banks)
    t, last = x.shape[1], model.config.memory.layers[-1]
    for i in range(begin, last + 1):
        block = model.blocks[i]
        memory = cast(GatedMemory | None, block.memory)
        add = None
        if memory is not None:
            j = model.bank_of[i]
            old = banks[j][:, first : first + t]  # (b, t, d)
            with watched(memory, gates):
                add, rows = memory(x, reads[j], old)
            rows = torch.where(present[..., None], rows, old)
            banks[j] = torch.cat((banks[j][:, :first], rows, banks[j][:, first + t :]), dim=1)  # (b, n, d)
            if i == last:
                break
        a = block.self_attn(block.input_layernorm(x).to(x.dtype), cos, sin, whole)  # (b, t, d)
        x = block.finish(x, a if add is None else a + add)
    return banks


def answer(model: LM2, x: Tensor, reads: Reads, begin: int = 0) -> Tensor:
    """Final hidden states, normed, of q sequences that each begin a fresh chunk and read the same banks: x and result (b, q, t, d)."""
    b, q, t, d = x.shape
    cos, sin = (table[:t] for table in model.tables())

    def attention(block: Block, x: Tensor) -> Tensor:
        y = block.input_layernorm(x).to(x.dtype).view(b * q, t, d)
        return block.self_attn(y, cos, sin, whole).reshape(b, q * t, d)

    return _answer(model, x.reshape(b, q * t, d), reads, begin, attention).view(b, q, t, d)


def _answer(model: LM2, x: Tensor, reads: Reads, begin: int, attention: Callable[[Block, Tensor], Tensor]) -> Tensor:
    for i in range(begin, len(model.layers)):
        block = model.blocks[i]
        memory = cast(GatedMemory | None, block.memory)
        a = attention(block, x)  # (b, t, d)
        if memory is not None:
            nothing = x.new_zeros((), dtype=torch.float32).expand(x.shape)
            add = memory(x, reads[model.bank_of[i]], nothing)[0]  # None: nothing was written yet
            a = a if add is None else a + add
        x = block.finish(x, a)
    return model.norm(x).to(x.dtype)  # (b, t, d)


@contextmanager
def watched(memory: GatedMemory, gates: list[Tensor] | None) -> Iterator[None]:
    """Append this memory's input gate (b, t, d) to `gates` when it is computed."""
    if gates is None:
        yield
        return

    def note(module: torch.nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        gates.append(torch.sigmoid(out.chunk(2, -1)[0] + memory.input_bias))

    hook = memory.token_proj.register_forward_hook(note)
    try:
        yield
    finally:
        hook.remove()
