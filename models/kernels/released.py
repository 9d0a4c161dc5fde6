"""The released cell's chain around its matrix products: LayerNorm and tanh before them, LayerNorm, gates and update after them, one pass each.

Knows rows and vectors. Source: arXiv 2502.06049 and the behaviour of the released checkpoints (docs/model.md).
Axes: b batch, t tokens, n width of a row.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..update import gated_memory_update as plain_update
from .choice import fused, on_device_of
from .recompute import register


def plain_open(rows: Tensor, attended: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """LayerNorm(rows + attended), and tanh(rows): rows (b, t, n), attended of any float dtype, weight and bias (n,). Both in rows' dtype."""
    attended = attended.to(rows.dtype)
    return F.layer_norm(rows + attended, rows.shape[-1:], weight, bias, eps), torch.tanh(rows)


def plain_close(
    z: Tensor, u: Tensor, weight: Tensor, bias: Tensor, eps: float, pooled: Tensor, bank: Tensor, i: Tensor, f: Tensor, rows: Tensor
) -> Tensor:
    """New rows (b, t, n): candidate LayerNorm(z + u), gates pooled (b, t or 1, 2n) + bank (b, t, 2n) + their scalar biases i, f, old rows."""
    z = F.layer_norm(z + u, z.shape[-1:], weight, bias, eps)  # (b, t, n)
    gi, gf = (pooled + bank).chunk(2, dim=-1)  # (b, t, n) each
    return plain_update(gi + i, gf + f, z, rows)


@torch.library.custom_op("lm2::released_memory_open", mutates_args=())
def open_op(rows: Tensor, attended: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`plain_open` in one launch; rows float32."""
    if not fused(rows):
        z, m = plain_open(rows, attended, weight, bias, eps)
        return z.contiguous(), m.contiguous()
    from . import released_triton

    z, m = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device), torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
    with on_device_of(rows):
        released_triton.opening(rows, attended, weight, bias, eps, z, m)
    return z, m


@open_op.register_fake
def _(rows: Tensor, attended: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty(rows.shape, dtype=rows.dtype, device=rows.device), torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)


register(open_op, plain_open)


@torch.library.custom_op("lm2::released_memory_close", mutates_args=())
def close_op(
    z: Tensor, u: Tensor, weight: Tensor, bias: Tensor, eps: float, pooled: Tensor, bank: Tensor, i: Tensor, f: Tensor, rows: Tensor
) -> Tensor:
    """`plain_close` in one launch; everything float32."""
    if not fused(rows):
        return plain_close(z, u, weight, bias, eps, pooled, bank, i, f, rows).contiguous()
    from . import released_triton

    new = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
    with on_device_of(z):
        released_triton.closing(z, u, weight, bias, eps, pooled, bank, i, f, rows, new)
    return new


@close_op.register_fake
def _(
    z: Tensor, u: Tensor, weight: Tensor, bias: Tensor, eps: float, pooled: Tensor, bank: Tensor, i: Tensor, f: Tensor, rows: Tensor
) -> Tensor:
    return torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)


register(close_op, plain_close)


def released_open(rows: Tensor, attended: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`plain_open`, as an operator where kernels run."""
    return (open_op if fused(rows) else plain_open)(rows, attended, weight, bias, eps)


def released_close(
    z: Tensor, u: Tensor, weight: Tensor, bias: Tensor, eps: float, pooled: Tensor, bank: Tensor, i: Tensor, f: Tensor, rows: Tensor
) -> Tensor:
    """`plain_close`, as an operator where kernels run."""
    return (close_op if fused(rows) else plain_close)(z, u, weight, bias, eps, pooled, bank, i, f, rows)
