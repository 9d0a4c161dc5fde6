"""The operator lm2::rotate_store: for one token of each sequence, rotary embedding of queries and keys, and keys and values into their buffers.

Knows positions as a tensor on the device. For inference only: it writes into its arguments. Axes: b batch, h query heads, k key/value heads, e head width,
T positions of a chunk.
"""

import torch
from torch import Tensor

from .choice import fused, on_device_of


def plain_rotate_store(qkv: Tensor, cos: Tensor, sin: Tensor, position: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """qkv (b, (h + 2k) e) of one token each, tables (T, e), position (b,) int64, keys and values (b, k, T, e), written at `position`.

    Returns the queries, turned, (b, h, e). Dimension i turns with dimension i + e/2, in the wider of the two dtypes.
    """
    b, groups, e = qkv.shape[0], keys.shape[1], keys.shape[3]
    heads = qkv.view(b, -1, e)  # (b, h + 2k, e)
    h = heads.shape[1] - 2 * groups
    x = heads[:, : h + groups]
    c, s = cos[position][:, None], sin[position][:, None]  # (b, 1, e)
    turned = torch.cat((-x[..., e // 2 :], x[..., : e // 2]), dim=-1)  # (b, h + k, e)
    x = (x * c + turned * s).to(qkv.dtype)  # (b, h + k, e)
    each = torch.arange(b, device=position.device)  # (b,)
    keys[each, :, position] = x[:, h:]
    values[each, :, position] = heads[:, h + groups :]
    return x[:, :h].contiguous()


@torch.library.custom_op("lm2::rotate_store", mutates_args=("keys", "values"))
def rotate_store_op(qkv: Tensor, cos: Tensor, sin: Tensor, position: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """`plain_rotate_store` in one launch."""
    if not fused(qkv):
        return plain_rotate_store(qkv, cos, sin, position, keys, values).clone()
    from . import rotary_triton

    b, groups, e = qkv.shape[0], keys.shape[1], keys.shape[3]
    q = torch.empty(b, qkv.shape[1] // e - 2 * groups, e, dtype=qkv.dtype, device=qkv.device)
    with on_device_of(qkv):
        rotary_triton.rotate_store(qkv, cos, sin, position, keys, values, q)
    return q


@rotate_store_op.register_fake
def _(qkv: Tensor, cos: Tensor, sin: Tensor, position: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    e = keys.shape[3]
    return torch.empty(qkv.shape[0], qkv.shape[1] // e - 2 * keys.shape[1], e, dtype=qkv.dtype, device=qkv.device)


def rotate_store(qkv: Tensor, cos: Tensor, sin: Tensor, position: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """`plain_rotate_store`, as an operator where kernels run. (b, h, e)"""
    return (rotate_store_op if fused(qkv) else plain_rotate_store)(qkv, cos, sin, position, keys, values)
