"""Triton form of lm2::rotate_store: a program takes one head of one sequence. Imports Triton.

Axes: b batch, h query heads, k key/value heads, e head width, T positions. Products are float32.
"""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def rotate_store_kernel(qkv, cos, sin, position, keys, values, q, heads, groups, e, kb, kk, kt, vb, vk, vt, E: tl.constexpr):
    """Program (b, head): heads 0 .. h - 1 are queries, the next k keys, the last k values. qkv and q dense; Xb, Xk, Xt strides of the buffers."""
    b, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = tl.arange(0, E)
    live = at < e
    place = tl.load(position + b)
    source = qkv + (b * (heads + 2 * groups) + head) * e
    x = tl.load(source + at, live, other=0.0)
    if head >= heads + groups:
        tl.store(values + b * vb + (head - heads - groups) * vk + place * vt + at, x, live)
    else:
        half = e // 2
        other = tl.load(source + tl.where(at < half, at + half, at - half), live, other=0.0).to(tl.float32)
        c = tl.load(cos + place * e + at, live, other=0.0).to(tl.float32)
        s = tl.load(sin + place * e + at, live, other=0.0).to(tl.float32)
        turned = (x.to(tl.float32) * c + tl.where(at < half, -other, other) * s).to(q.dtype.element_ty)
        if head < heads:
            tl.store(q + (b * heads + head) * e + at, turned, live)
        else:
            tl.store(keys + b * kb + (head - heads) * kk + place * kt + at, turned, live)


def rotate_store(qkv: Tensor, cos: Tensor, sin: Tensor, position: Tensor, keys: Tensor, values: Tensor, q: Tensor) -> None:
    """Fill q (b, h, e) and write keys and values (b, k, T, e), dense in e, at `position` (b,)."""
    b, h, e = q.shape
    groups = keys.shape[1]
    rotate_store_kernel[(b, h + 2 * groups)](
        qkv.contiguous(), cos, sin, position, keys, values, q, h, groups, e, *keys.stride()[:3], *values.stride()[:3],
        E=triton.next_power_of_2(e), num_warps=1,
    )  # fmt: skip
