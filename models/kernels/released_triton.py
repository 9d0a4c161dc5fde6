"""Triton form of the released cell's chain: a program takes one row of n numbers. Imports Triton.

Axes: b batch, t tokens, n width. Everything between load and store is float32; mean and variance in two steps, in registers.
"""

import triton
import triton.language as tl
from torch import Tensor

from .norm_triton import warps
from .parts_triton import sigmoid, tanh
from .update_triton import rows_of, strides


@triton.jit
def _layer_norm(v, weight, bias, at, live, n, eps):
    mean = tl.sum(v) / n
    centred = tl.where(live, v - mean, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred) / n + eps)
    w = tl.load(weight + at, live, other=0.0).to(tl.float32)
    return centred * scale * w + tl.load(bias + at, live, other=0.0).to(tl.float32)


@triton.jit
def open_kernel(rows, attended, weight, bias, z, m, t, n, eps, rb, rt, ab, at_, BLOCK: tl.constexpr):
    """z = LayerNorm(rows + attended), m = tanh(rows), both dense."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    live = at < n
    b, s = row // t, row % t
    kept = tl.load(rows + b * rb + s * rt + at, live, other=0.0).to(tl.float32)
    v = kept + tl.load(attended + b * ab + s * at_ + at, live, other=0.0).to(tl.float32)
    tl.store(z + row * n + at, _layer_norm(v, weight, bias, at, live, n, eps).to(z.dtype.element_ty), live)
    tl.store(m + row * n + at, tanh(kept).to(m.dtype.element_ty), live)


@triton.jit
def close_kernel(z, u, weight, bias, pooled, bank, i, f, rows, new, t, n, eps, zb, zt, ub, ut, pb, pt, gb, gt, rb, rt, BLOCK: tl.constexpr):
    """new = update of rows by the candidate LayerNorm(z + u) and both gates; new is dense. pt is 0 where one pooled row serves all tokens."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    live = at < n
    b, s = row // t, row % t
    v = tl.load(z + b * zb + s * zt + at, live, other=0.0).to(tl.float32) + tl.load(u + b * ub + s * ut + at, live, other=0.0).to(
        tl.float32
    )
    c = _layer_norm(v, weight, bias, at, live, n, eps)
    p, g = pooled + b * pb + s * pt + at, bank + b * gb + s * gt + at
    gi = tl.load(p, live, other=0.0).to(tl.float32) + tl.load(g, live, other=0.0).to(tl.float32) + tl.load(i).to(tl.float32)
    gf = tl.load(p + n, live, other=0.0).to(tl.float32) + tl.load(g + n, live, other=0.0).to(tl.float32) + tl.load(f).to(tl.float32)
    kept = tl.load(rows + b * rb + s * rt + at, live, other=0.0).to(tl.float32)
    tl.store(new + row * n + at, (sigmoid(gi) * tanh(c) + sigmoid(gf) * kept).to(new.dtype.element_ty), live)


def opening(rows: Tensor, attended: Tensor, weight: Tensor, bias: Tensor, eps: float, z: Tensor, m: Tensor) -> None:
    """Fill z and m (b, t, n), dense."""
    if rows.numel() == 0:
        return
    rows, attended = rows_of(rows), rows_of(attended)
    b, t, n = rows.shape
    block = triton.next_power_of_2(n)
    open_kernel[(b * t,)](rows, attended, weight, bias, z, m, t, n, eps, *strides(rows, attended), BLOCK=block, num_warps=warps(block))


def closing(
    z: Tensor,
    u: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    pooled: Tensor,
    bank: Tensor,
    i: Tensor,
    f: Tensor,
    rows: Tensor,
    new: Tensor,
) -> None:
    """Fill new (b, t, n), dense. pooled is (b, t or 1, 2n), i and f are scalars on the device."""
    if rows.numel() == 0:
        return
    z, u, bank, rows = (rows_of(x) for x in (z, u, bank, rows))
    b, t, n = rows.shape
    pooled = rows_of(pooled).expand(b, t, 2 * n)
    block = triton.next_power_of_2(n)
    close_kernel[(b * t,)](
        z,
        u,
        weight,
        bias,
        pooled,
        bank,
        i,
        f,
        rows,
        new,
        t,
        n,
        eps,
        *strides(z, u, pooled, bank, rows),
        BLOCK=block,
        num_warps=warps(block),
    )
