"""What follows the matrix products of one gated memory layer: output gate, candidate, gates and the new row, in one pass.

lm2::gated_memory_finish makes new tensors (any number of tokens, differentiable); lm2::gated_memory_step is for one token of decode: it adds to the attention
output and writes the row into a buffer at a position that lies on the device. Knows no weights but the two vectors.
Source: arXiv 2502.06049, equations 2-6. Axes: b batch, t tokens, d width, T rows of a buffer.
"""

import torch
from torch import Tensor

from ..update import gated_memory_update as plain_update
from .choice import fused, on_device_of
from .recompute import register


def plain_finish(
    token: Tensor, gates: Tensor, read: Tensor, old: Tensor, bias: Tensor, scale: Tensor | None, dtype: torch.dtype, both: bool = True
) -> tuple[Tensor, Tensor]:
    """From token (b, t, 2d: input gate, content), gates (b, t, 2d: output gate, forget gate), read and old (b, t, d), bias and scale (d,).
    both: a row is made of what was read too, not of the token's content alone.

    Returns scale * sigmoid(output gate) * read in `dtype`, and the new rows, both (b, t, d).
    """
    i, z = token.chunk(2, dim=-1)  # (b, t, d) each
    o, f = gates.chunk(2, dim=-1)  # (b, t, d) each
    read = read.to(token.dtype)
    add = torch.sigmoid(o) * read  # (b, t, d)
    if scale is not None:
        add = scale * add
    return add.to(dtype), plain_update(i + bias, f, read + z if both else z, old)


def plain_step(
    token: Tensor,
    gates: Tensor,
    read: Tensor,
    old: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    attended: Tensor,
    position: Tensor,
    rows: Tensor,
    both: bool = True,
) -> Tensor:
    """One token of each sequence: token, gates (b, 2d), read, attended (b, d), position (b,) int64; old and rows (b, T, d) buffers.

    Writes rows[:, position] from old[:, position]; returns attended plus what the memory adds, (b, d) in attended's dtype.
    """
    each = torch.arange(len(position), device=position.device)  # (b,)
    add, new = plain_finish(token[:, None], gates[:, None], read[:, None], old[each, position][:, None], bias, scale, attended.dtype, both)
    rows[each, position] = new[:, 0]
    return attended + add[:, 0]  # (b, d)


@torch.library.custom_op("lm2::gated_memory_finish", mutates_args=())
def finish_op(
    token: Tensor, gates: Tensor, read: Tensor, old: Tensor, bias: Tensor, scale: Tensor | None, dtype: torch.dtype, both: bool = True
) -> tuple[Tensor, Tensor]:
    """`plain_finish` in one launch; token, gates, old float32, read of any float dtype."""
    if not fused(read):
        add, new = plain_finish(token, gates, read, old, bias, scale, dtype, both)
        return add.contiguous(), new.contiguous()
    from . import gated_triton

    add, new = torch.empty(read.shape, dtype=dtype, device=read.device), torch.empty(old.shape, dtype=old.dtype, device=read.device)
    with on_device_of(token):
        gated_triton.finish(token, gates, read, old, bias, scale, None, None, add, new, both)
    return add, new


@finish_op.register_fake
def _(
    token: Tensor, gates: Tensor, read: Tensor, old: Tensor, bias: Tensor, scale: Tensor | None, dtype: torch.dtype, both: bool = True
) -> tuple[Tensor, Tensor]:
    return torch.empty(read.shape, dtype=dtype, device=read.device), torch.empty(old.shape, dtype=old.dtype, device=old.device)


register(finish_op, plain_finish)


@torch.library.custom_op("lm2::gated_memory_step", mutates_args=("rows",))
def step_op(
    token: Tensor,
    gates: Tensor,
    read: Tensor,
    old: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    attended: Tensor,
    position: Tensor,
    rows: Tensor,
    both: bool = True,
) -> Tensor:
    """`plain_step` in one launch. For inference: torch gives no gradient to operators that write into their arguments."""
    if not fused(read):
        return plain_step(token, gates, read, old, bias, scale, attended, position, rows, both)
    from . import gated_triton

    joined = torch.empty(attended.shape, dtype=attended.dtype, device=attended.device)
    with on_device_of(token):
        gated_triton.finish(
            token[:, None], gates[:, None], read[:, None], old, bias, scale, attended[:, None], position, joined[:, None], rows, both
        )
    return joined


@step_op.register_fake
def _(
    token: Tensor,
    gates: Tensor,
    read: Tensor,
    old: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    attended: Tensor,
    position: Tensor,
    rows: Tensor,
    both: bool = True,
) -> Tensor:
    return torch.empty(attended.shape, dtype=attended.dtype, device=attended.device)


def gated_memory_finish(
    token: Tensor, gates: Tensor, read: Tensor, old: Tensor, bias: Tensor, scale: Tensor | None, dtype: torch.dtype, both: bool = True
) -> tuple[Tensor, Tensor]:
    """`plain_finish`, as an operator where kernels run."""
    return (finish_op if fused(read) else plain_finish)(token, gates, read, old, bias, scale, dtype, both)


def gated_memory_step(
    token: Tensor,
    gates: Tensor,
    read: Tensor,
    old: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    attended: Tensor,
    position: Tensor,
    rows: Tensor,
    both: bool = True,
) -> Tensor:
    """`plain_step`, as an operator where kernels run."""
    return (step_op if fused(read) else plain_step)(token, gates, read, old, bias, scale, attended, position, rows, both)
