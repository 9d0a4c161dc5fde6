"""Triton form of the gated memory update and of its gradient: one pass over memory each. Knows strided rows of d numbers; imports Triton.

Axes: b batch, t rows of each batch entry, d width. Halves are computed in float32 and rounded once.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .parts_triton import sigmoid, tanh

WIDEST = 2048  # elements of one row that a program takes


@triton.jit
def _wide(x):
    return x if x.dtype == tl.float64 else x.to(tl.float32)


@triton.jit
def forward_kernel(i, f, z, old, new, t, d, ib, it, fb, ft, zb, zt, ob, ot, BLOCK: tl.constexpr):
    """Program (row, block): `BLOCK` elements of row row % t of batch entry row // t. Xb, Xt: strides of x over b and t; new is dense."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = at < d
    b, s = row // t, row % t
    iv = _wide(tl.load(i + b * ib + s * it + at, live, other=0.0))
    fv = _wide(tl.load(f + b * fb + s * ft + at, live, other=0.0))
    zv = _wide(tl.load(z + b * zb + s * zt + at, live, other=0.0))
    ov = _wide(tl.load(old + b * ob + s * ot + at, live, other=0.0))
    tl.store(new + row * d + at, (sigmoid(iv) * tanh(zv) + sigmoid(fv) * ov).to(new.dtype.element_ty), live)


@triton.jit
def backward_kernel(g, i, f, z, old, gi, gf, gz, gold, t, d, gb, gt, ib, it, fb, ft, zb, zt, ob, ot, BLOCK: tl.constexpr):
    """Gradients of all four inputs, dense, from the gradient g of the result."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = at < d
    b, s = row // t, row % t
    gv = _wide(tl.load(g + b * gb + s * gt + at, live, other=0.0))
    si = sigmoid(_wide(tl.load(i + b * ib + s * it + at, live, other=0.0)))
    sf = sigmoid(_wide(tl.load(f + b * fb + s * ft + at, live, other=0.0)))
    c = tanh(_wide(tl.load(z + b * zb + s * zt + at, live, other=0.0)))
    ov = _wide(tl.load(old + b * ob + s * ot + at, live, other=0.0))
    kind = gi.dtype.element_ty
    to = row * d + at
    tl.store(gi + to, (gv * c * si * (1.0 - si)).to(kind), live)
    tl.store(gf + to, (gv * ov * sf * (1.0 - sf)).to(kind), live)
    tl.store(gz + to, (gv * si * (1.0 - c * c)).to(kind), live)
    tl.store(gold + to, (gv * sf).to(kind), live)


def rows_of(x: Tensor) -> Tensor:
    """x as (b, t, d) with dense d: a view where it can be one, a copy where d has strides or there are other axes."""
    if x.dim() != 3:
        x = x.reshape(1, -1, x.shape[-1] if x.dim() else 1)
    return x if x.shape[-1] <= 1 or x.stride(-1) == 1 else x.contiguous()


def strides(*xs: Tensor) -> list[int]:
    """Strides over b and t of each (b, t, d)."""
    return [s for x in xs for s in x.stride()[:2]]


def plan(b: int, t: int, d: int) -> tuple[tuple[int, int], dict[str, Any]]:
    """The grid over rows and blocks of a row, and its constants."""
    block = min(triton.next_power_of_2(d), WIDEST)
    return (b * t, triton.cdiv(d, block)), {"BLOCK": block, "num_warps": 8 if block >= 2048 else 4}


def forward(i: Tensor, f: Tensor, z: Tensor, old: Tensor, new: Tensor) -> None:
    """Fill new, dense, from four tensors of its shape and dtype."""
    if new.numel() == 0:
        return
    i, f, z, old = (rows_of(x) for x in (i, f, z, old))
    b, t, d = i.shape
    grid, constants = plan(b, t, d)
    forward_kernel[grid](i, f, z, old, new, t, d, *strides(i, f, z, old), **constants)


def backward(g: Tensor, i: Tensor, f: Tensor, z: Tensor, old: Tensor, made: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    """Fill the gradients of i, f, z and old, all dense."""
    if g.numel() == 0:
        return
    g, i, f, z, old = (rows_of(x) for x in (g, i, f, z, old))
    b, t, d = i.shape
    grid, constants = plan(b, t, d)
    backward_kernel[grid](g, i, f, z, old, *made, t, d, *strides(g, i, f, z, old), **constants)
