"""Triton form of the released cell's running mean and of its stores. Imports Triton.

Axes: b batch, d width, h heads, e head width, T positions. Sums are float32.
"""

import triton
import triton.language as tl
from torch import Tensor

from .update_triton import plan


@triton.jit
def pool_kernel(a, scale, position, sums, mean, d, sb, st, BLOCK: tl.constexpr):
    """Program (b, block). a and mean dense; sb, st: strides of sums over b and positions."""
    b = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = at < d
    place = tl.load(position + b)
    x = tl.load(a + b * d + at, live, other=0.0).to(tl.float32) * tl.load(scale + at, live, other=0.0).to(tl.float32)
    x = tl.where(x < 0.0, 0.0, x)  # NaN stays NaN
    total = tl.load(sums + b * sb + place * st + at, live, other=0.0).to(tl.float32) + x
    tl.store(sums + b * sb + (place + 1) * st + at, total.to(sums.dtype.element_ty), live)
    tl.store(mean + b * d + at, (total / (place + 1).to(tl.float32)).to(mean.dtype.element_ty), live)


@triton.jit
def store_kernel(k, v, position, keys, values, heads, e, kb, kh, kt, vb, vh, vt, E: tl.constexpr):
    """Program (b, head). k and v dense; Xb, Xh, Xt: strides of the buffers."""
    b, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = tl.arange(0, E)
    live = at < e
    place = tl.load(position + b)
    source = (b * heads + head) * e + at
    tl.store(keys + b * kb + head * kh + place * kt + at, tl.load(k + source, live, other=0.0), live)
    tl.store(values + b * vb + head * vh + place * vt + at, tl.load(v + source, live, other=0.0), live)


def pool(a: Tensor, scale: Tensor, position: Tensor, sums: Tensor, mean: Tensor) -> None:
    """Fill mean (b, d) and write sums (b, T + 1, d), dense in d, after `position` (b,)."""
    b, d = a.shape
    grid, constants = plan(b, 1, d)
    pool_kernel[grid](a.contiguous(), scale, position, sums, mean, d, *sums.stride()[:2], **constants)


def store(k: Tensor, v: Tensor, position: Tensor, keys: Tensor, values: Tensor) -> None:
    """Write k and v (b, h e) at `position` (b,) of keys and values (b, h, T, e), dense in e."""
    b, h, e = k.shape[0], keys.shape[1], keys.shape[3]
    store_kernel[(b, h)](
        k.contiguous(), v.contiguous(), position, keys, values, h, e, *keys.stride()[:3], *values.stride()[:3],
        E=triton.next_power_of_2(e), num_warps=1,
    )  # fmt: skip
