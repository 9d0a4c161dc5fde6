"""Triton form of the RMS norm, with or without a sum before it: a program takes one row. Imports Triton.

Axes: r rows, d width. Everything between load and store is float32.
"""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def rms_norm_kernel(x, y, weight, total, out, d, eps, ADD: tl.constexpr, BLOCK: tl.constexpr):
    """out = norm(x) or, with ADD, total = x + y rounded to total's dtype and out = norm(total). Rows are dense and d apart."""
    row = tl.program_id(0).to(tl.int64) * d
    at = tl.arange(0, BLOCK)
    live = at < d
    v = tl.load(x + row + at, live, other=0.0).to(tl.float32)
    if ADD:
        v += tl.load(y + row + at, live, other=0.0).to(tl.float32)
        rounded = v.to(total.dtype.element_ty)
        tl.store(total + row + at, rounded, live)
        v = rounded.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(v * v) / d + eps)
    w = tl.load(weight + at, live, other=0.0).to(tl.float32)
    tl.store(out + row + at, (v * scale * w).to(out.dtype.element_ty), live)


def warps(block: int) -> int:
    """Warps for a row of `block` numbers in one program."""
    return min(max(block // 256, 1), 16)


def rms_norm(x: Tensor, y: Tensor | None, weight: Tensor, eps: float, total: Tensor | None, out: Tensor) -> None:
    """Fill out (and total, when y is given), dense, from x (r, d)."""
    d = x.shape[-1]
    if x.numel() == 0:
        return
    x, y = x.contiguous(), None if y is None else y.contiguous()
    block = triton.next_power_of_2(d)
    grid = (x.numel() // d,)
    rms_norm_kernel[grid](x, y, weight, total, out, d, eps, ADD=y is not None, BLOCK=block, num_warps=warps(block))
