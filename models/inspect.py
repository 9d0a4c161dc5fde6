"""What the gates of cell `gated` did to one chunk, recomputed beside the forward pass. Knows the modules of memory.py; changes nothing it watches.

Each GatedMemory is watched with a forward hook for what it was given; gates and attention are then computed from its own submodules.
What the chunk leaves in a bank is `added + kept * old`, row by row: the parts of equation 6, so that who wrote what can be told apart.
Axes: b batch (1), t positions, n rows, d width, h heads, e head width, l banks, v vocabulary.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .errors import ModelFileError
from .lm2 import LM2, WindowState
from .memory import GatedMemory


class LayerView(NamedTuple):
    """One memory layer over a chunk, float32. write, forget, out: gates, means over the width, (t,). mass: attention over the bank's rows,
    mean over heads, (t, n), zeros where the bank was never written. added, kept: what joins each row and what is left of it, (t, d)."""

    layer: int
    write: Tensor
    forget: Tensor
    out: Tensor
    mass: Tensor
    added: Tensor
    kept: Tensor


class ChunkView(NamedTuple):
    """A chunk as its memory layers saw it, the logits (t, v) of its positions, and the bank it leaves, (l, 1, n, d), the topics' bank in it."""

    layers: tuple[LayerView, ...]
    logits: Tensor
    bank: Tensor


def check_cell(model: LM2) -> None:
    """Raise ModelFileError for a model whose gates cannot be looked at: another cell, or no memory."""
    if model.config.memory.cell != "gated":
        raise ModelFileError(f"memory.cell {model.config.memory.cell!r}: only the gates of cell 'gated' can be looked at")
    if not model.config.memory.layers:
        raise ModelFileError("the model has no memory layer to look at: give it a memory with `lm2 convert`")


@torch.inference_mode()
def view(model: LM2, ids: Tensor, bank: Tensor, written: int, tables: tuple[Tensor, Tensor]) -> ChunkView:
    """Feed ids (1, t) to a new window that reads `bank` (l, 1, n, d), which holds `written` tokens. Raises as `view_in` does."""
    return view_in(model, ids, model.start(bank, written), tables)[0]


@torch.inference_mode()
def view_in(model: LM2, ids: Tensor, state: WindowState, tables: tuple[Tensor, Tensor]) -> tuple[ChunkView, WindowState]:
    """Feed ids (1, t) to a window in progress: what its memory layers saw, the bank with everything written, and the longer window.

    Raises ModelFileError as check_cell does, ValueError past the window's end or a chunk since its last fold.
    """
    check_cell(model)
    given: dict[int, tuple[Any, ...]] = {}
    handles = []
    for i, block in enumerate(model.blocks):
        if block.memory is not None:
            handles.append(block.memory.register_forward_hook(lambda _module, args, _out, i=i: given.update({i: args})))
    try:
        logits, longer = model.extend(ids, state, tables, all_logits=True)  # (1, t, v)
    finally:
        for handle in handles:
            handle.remove()
    after, _ = model.commit(longer)
    layers = tuple(_layer(i, model.blocks[i].memory, args[0], args[1], args[3], after.shape[2]) for i, args in sorted(given.items()))
    return ChunkView(layers, logits[0].float(), after), longer


def _layer(layer: int, memory: Any, x: Tensor, kv: tuple[Tensor, Tensor] | None, looks: Tensor | None, rows: int) -> LayerView:
    """memory.py's GatedMemory.forward once more, with its attention weights written out."""
    assert isinstance(memory, GatedMemory)
    t = x.shape[1]
    u = memory.norm(x)  # (1, t, d)
    i, z = memory.token_proj(u).chunk(2, dim=-1)  # (1, t, d) each
    write = torch.sigmoid(i + memory.input_bias)
    if kv is None:
        forget = torch.sigmoid(memory.read_proj.bias.chunk(2)[1]).expand_as(write)  # (1, t, d)
        out, content, mass = torch.zeros_like(write), z, x.new_zeros(t, rows)
    else:
        q = memory.q_proj(u.to(x.dtype)).view(1, t, memory.heads, memory.width).transpose(1, 2)  # (1, h, t, e)
        logits = q.float() @ kv[0].float().transpose(-1, -2) / memory.width**0.5  # (1, h, t, n)
        weights = torch.softmax(logits if looks is None else logits + looks[:, None].float(), dim=-1)  # (1, h, t, n)
        read = (weights @ kv[1].float()).to(x.dtype).transpose(1, 2).reshape(1, t, -1)  # (1, t, h e)
        if memory.o_proj is not None:
            read = memory.o_proj(read)  # (1, t, d)
        read = read.to(u.dtype)
        o, f = memory.opened(memory.read_proj(read), u).chunk(2, dim=-1)  # (1, t, d) each
        out, forget, content, mass = torch.sigmoid(o), torch.sigmoid(f), read + z if memory.both else z, weights[0].mean(dim=0)
    added = write * torch.tanh(content)  # (1, t, d)
    gates = [gate[0].float().mean(dim=-1).cpu() for gate in (write, forget, out)]  # (t,) each
    return LayerView(layer, gates[0], gates[1], gates[2], mass.float().cpu(), added[0].float().cpu(), forget[0].float().cpu())
