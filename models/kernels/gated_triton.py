"""Triton form of what follows the matrix products of a gated memory layer. Imports Triton.

Axes: b batch, t tokens, d width, T rows of a buffer. Everything between load and store is float32.
"""

import triton
import triton.language as tl
from torch import Tensor

from .parts_triton import sigmoid, tanh
from .update_triton import plan, rows_of, strides


@triton.jit
def finish_kernel(
    token, gates, read, old, bias, scale, attended, position, out, new, t, d, tb, tt, gb, gt, rb, rt, ob, ot, ab, at_, ub, ut, nb, nt,
    SCALE: tl.constexpr, STEP: tl.constexpr, BOTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program (row, block): token row % t of batch entry row // t. Xb, Xt: strides over b and t (of old and new: over their rows).

    Without STEP: out = what the memory adds, new = the new rows. With STEP (t = 1): out = attended + that, rounded once; old and new are buffers, read
    and written at row position[b].
    """
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = at < d
    b, s = row // t, row % t
    place = s
    if STEP:
        place = tl.load(position + b)
    i = tl.load(token + b * tb + s * tt + at, live, other=0.0).to(tl.float32)
    z = tl.load(token + b * tb + s * tt + d + at, live, other=0.0).to(tl.float32)
    o = tl.load(gates + b * gb + s * gt + at, live, other=0.0).to(tl.float32)
    f = tl.load(gates + b * gb + s * gt + d + at, live, other=0.0).to(tl.float32)
    e = tl.load(read + b * rb + s * rt + at, live, other=0.0).to(tl.float32)
    kept = tl.load(old + b * ob + place * ot + at, live, other=0.0).to(tl.float32)
    i += tl.load(bias + at, live, other=0.0).to(tl.float32)
    add = sigmoid(o) * e
    if SCALE:
        add = tl.load(scale + at, live, other=0.0).to(tl.float32) * add
    if STEP:
        add += tl.load(attended + b * ab + s * at_ + at, live, other=0.0).to(tl.float32)
    tl.store(out + b * ub + s * ut + at, add.to(out.dtype.element_ty), live)
    if BOTH:
        z += e
    made = sigmoid(i) * tanh(z) + sigmoid(f) * kept
    tl.store(new + b * nb + place * nt + at, made.to(new.dtype.element_ty), live)


def finish(
    token: Tensor, gates: Tensor, read: Tensor, old: Tensor, bias: Tensor, scale: Tensor | None,
    attended: Tensor | None, position: Tensor | None, out: Tensor, new: Tensor, both: bool = True,
) -> None:  # fmt: skip
    """Fill out (b, t, d) and new (of what was read and the token with `both`, else of the token); with `position` (b,) one token each, and old and new are buffers (b, T, d)."""
    b, t, d = read.shape
    if read.numel() == 0:
        return
    token, gates, read, old = (rows_of(x) for x in (token, gates, read, old))
    joined = read if attended is None else rows_of(attended)
    grid, constants = plan(b, t, d)
    finish_kernel[grid](
        token, gates, read, old, bias, scale, attended, position, out, new, t, d,
        *strides(token, gates, read, old, joined, out, new), SCALE=scale is not None, STEP=position is not None, BOTH=both, **constants,
    )  # fmt: skip
