"""Two small operators of the released cell's decode step: the running mean that feeds its gates, and keys and values into their buffers, one launch each.

Positions lie on the device. For inference only: both write into their arguments. Axes: b batch, d width, h heads, e head width, T positions.
"""

import torch
from torch import Tensor

from .choice import fused, on_device_of


def plain_pool(a: Tensor, scale: Tensor, position: Tensor, sums: Tensor) -> Tensor:
    """Mean over the chunk so far of relu(scale * a): a (b, d), scale (d,), position (b,) int64, sums (b, T + 1, d) with nothing at 0.

    Writes sums[:, position + 1]; returns (b, d) in sums' dtype.
    """
    each = torch.arange(len(a), device=a.device)  # (b,)
    total = sums[each, position] + torch.relu(scale * a)  # (b, d)
    sums[each, position + 1] = total
    return total / (position + 1)[:, None]


def plain_store(k: Tensor, v: Tensor, position: Tensor, keys: Tensor, values: Tensor) -> None:
    """k, v (b, h e) into keys, values (b, h, T, e) at `position` (b,) int64."""
    each = torch.arange(len(k), device=k.device)  # (b,)
    heads = (len(k), keys.shape[1], keys.shape[3])
    keys[each, :, position] = k.view(heads)
    values[each, :, position] = v.view(heads)


@torch.library.custom_op("lm2::released_memory_pool", mutates_args=("sums",))
def pool_op(a: Tensor, scale: Tensor, position: Tensor, sums: Tensor) -> Tensor:
    """`plain_pool` in one launch."""
    if not fused(a):
        return plain_pool(a, scale, position, sums)
    from . import stream_triton

    mean = torch.empty(a.shape, dtype=sums.dtype, device=a.device)
    with on_device_of(a):
        stream_triton.pool(a, scale, position, sums, mean)
    return mean


@pool_op.register_fake
def _(a: Tensor, scale: Tensor, position: Tensor, sums: Tensor) -> Tensor:
    return torch.empty(a.shape, dtype=sums.dtype, device=a.device)


@torch.library.custom_op("lm2::store_heads", mutates_args=("keys", "values"))
def store_op(k: Tensor, v: Tensor, position: Tensor, keys: Tensor, values: Tensor) -> None:
    """`plain_store` in one launch."""
    if not fused(k):
        plain_store(k, v, position, keys, values)
        return
    from . import stream_triton

    with on_device_of(k):
        stream_triton.store(k, v, position, keys, values)


@store_op.register_fake
def _(k: Tensor, v: Tensor, position: Tensor, keys: Tensor, values: Tensor) -> None:
    return None


def released_pool(a: Tensor, scale: Tensor, position: Tensor, sums: Tensor) -> Tensor:
    """`plain_pool`, as an operator where kernels run."""
    return (pool_op if fused(a) else plain_pool)(a, scale, position, sums)


def store_heads(k: Tensor, v: Tensor, position: Tensor, keys: Tensor, values: Tensor) -> None:
    """`plain_store`, as an operator where kernels run."""
    (store_op if fused(k) else plain_store)(k, v, position, keys, values)
