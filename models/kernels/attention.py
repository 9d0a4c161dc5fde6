"""The operator lm2::decode_attention: one query per head over many keys, split over the keys so that a small batch fills a device.

Serves the read of a memory bank (all rows visible) and self-attention of one token over a buffer of fixed size (the first `length` positions visible, a tensor
on the device). Knows no cache and no model. Axes: b batch, h query heads, k key/value heads, s keys, e head width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .choice import fused, on_device_of
from .recompute import register


def plain_attention(
    q: Tensor, keys: Tensor, values: Tensor, length: Tensor | None, looks: Tensor | None = None, window: int | None = None
) -> Tensor:
    """softmax(q keys^T / sqrt(e)) values: q (b, h, e), keys and values (b, k, s, e), length (b,) int64 or None for all. Returns (b, h, e).

    window: how many keys are visible at most, the last ones before `length`; None: all. looks (b, s): added to the logits of every head. The h / k heads
    of a group share keys. A sequence whose length is 0 has no result (NaN).
    """
    b, h, e = q.shape
    groups, s = keys.shape[1], keys.shape[2]
    mask = None
    if length is not None:
        at, end = torch.arange(s, device=q.device), length[:, None]  # (s,), (b, 1)
        mask = (at < end if window is None else (at < end) & (at >= end - window))[:, None, None]  # (b, 1, 1, s)
    elif window is not None:
        keys, values = keys[:, :, -window:], values[:, :, -window:]  # (b, k, w, e) each
        looks = None if looks is None else looks[:, -window:]  # (b, w)
    if looks is not None:
        term = looks[:, None, None].to(q.dtype)  # (b, 1, 1, s)
        mask = term if mask is None else term.masked_fill(~mask, -torch.inf)  # (b, 1, 1, s)
    return F.scaled_dot_product_attention(q.reshape(b, groups, h // groups, e), keys, values, attn_mask=mask).reshape(b, h, e)


@torch.library.custom_op("lm2::decode_attention", mutates_args=())
def attention_op(q: Tensor, keys: Tensor, values: Tensor, length: Tensor | None, window: int | None = None) -> Tensor:
    """`plain_attention` in two launches, softmax and sums in float32. Keys past `length` or before the window are never read."""
    if q.shape[1] % keys.shape[1] or keys.shape != values.shape or q.shape[0] != keys.shape[0] or q.shape[2] != keys.shape[3]:
        raise ValueError(f"decode_attention: queries {list(q.shape)}, keys {list(keys.shape)} and values {list(values.shape)} do not fit")
    if not fused(q):
        return plain_attention(q, keys, values, length, window=window).contiguous()
    from . import attention_triton

    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    with on_device_of(q):
        attention_triton.attention(q, keys, values, length, out, window)
    return out


@attention_op.register_fake
def _(q: Tensor, keys: Tensor, values: Tensor, length: Tensor | None, window: int | None = None) -> Tensor:
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


register(attention_op, lambda q, keys, values, length, window=None: plain_attention(q, keys, values, length, window=window))


def decode_attention(
    q: Tensor, keys: Tensor, values: Tensor, length: Tensor | None = None, looks: Tensor | None = None, window: int | None = None
) -> Tensor:
    """`plain_attention`, as an operator where kernels run, which know no `looks`. (b, h, e)"""
    if looks is not None or not fused(q):
        return plain_attention(q, keys, values, length, looks, window)
    out: Tensor = attention_op(q, keys, values, length, window)
    return out
