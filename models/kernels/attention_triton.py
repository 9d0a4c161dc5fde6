"""Triton form of attention of one query per head: partial sums over spans of the keys, then their combination. Imports Triton.

Axes: b batch, k key/value heads, g query heads of one of them, s keys, e head width, p spans. Scores, softmax and sums are float32.
"""

import triton
import triton.language as tl
from torch import Tensor, empty, float32

BLOCK = 64  # keys a program looks at together
PROGRAMS = 264  # programs wanted in all: two for each multiprocessor of the largest devices
SPANS_MAX = 64


@triton.jit
def partial_kernel(
    q, keys, values, length, sums, stats, s, e, heads, groups, span, window, scale, qb, qh, kb, kk, ks, vb, vk, vs,
    LENGTH: tl.constexpr, WINDOW: tl.constexpr, SPANS: tl.constexpr, ROWS: tl.constexpr, E: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program (b * groups + k, p): the g = heads / groups queries of one key head over keys p * span onward, those of
    the last `window` before the end with WINDOW.

    sums (b, h, p, E) unnormalised values, stats (b, h, p, 2) their largest score and sum of weights; -inf and 0 where no key is visible.
    """
    pair, p = tl.program_id(0).to(tl.int64), tl.program_id(1)
    b, k = pair // groups, pair % groups
    g = heads // groups
    rows, cols = tl.arange(0, ROWS), tl.arange(0, E)
    inside = cols[None, :] < e
    qv = tl.load(q + b * qb + (k * g + rows)[:, None] * qh + cols[None, :], (rows < g)[:, None] & inside, other=0.0).to(tl.float32) * scale
    end = s
    if LENGTH:
        end = tl.load(length + b).to(tl.int32)
    start, first, stop = p * span, 0, tl.minimum(p * span + span, end)
    if WINDOW:
        first = tl.maximum(end - window, 0)
        start = tl.maximum(start, first // BLOCK * BLOCK)  # spans begin at a multiple of BLOCK: the block of `first` holds a visible key, or is another span's
    top = tl.full([ROWS], float("-inf"), tl.float32)
    weight = tl.zeros([ROWS], tl.float32)
    total = tl.zeros([ROWS, E], tl.float32)
    for begin in range(start, stop, BLOCK):
        n = begin + tl.arange(0, BLOCK)
        live = n < stop
        if WINDOW:
            live = live & (n >= first)
        there = live[:, None] & inside
        kv = tl.load(keys + b * kb + k * kk + n[:, None].to(tl.int64) * ks + cols[None, :], there, other=0.0).to(tl.float32)
        vv = tl.load(values + b * vb + k * vk + n[:, None].to(tl.int64) * vs + cols[None, :], there, other=0.0).to(tl.float32)
        if ROWS == 1:
            score = tl.sum(qv * kv, axis=1)[None, :]
        else:
            score = tl.dot(qv, tl.trans(kv), input_precision="ieee")
        score = tl.where(live[None, :], score, float("-inf"))
        highest = tl.maximum(top, tl.max(score, axis=1))
        part = tl.exp(score - highest[:, None])
        shrink = tl.exp(top - highest)
        weight = weight * shrink + tl.sum(part, axis=1)
        if ROWS == 1:
            total = total * shrink[:, None] + tl.sum(tl.trans(part) * vv, axis=0)[None, :]
        else:
            total = total * shrink[:, None] + tl.dot(part, vv, input_precision="ieee")
        top = highest
    to = ((b * heads + k * g + rows) * SPANS + p)[:, None]
    tl.store(sums + to * E + cols[None, :], total, (rows < g)[:, None] & (cols[None, :] < E))
    flat = (b * heads + k * g + rows) * SPANS + p
    tl.store(stats + flat * 2, top, rows < g)
    tl.store(stats + flat * 2 + 1, weight, rows < g)


@triton.jit
def combine_kernel(sums, stats, out, e, SPANS: tl.constexpr, PADDED: tl.constexpr, E: tl.constexpr):
    """Program b * h + head: out[b, head] from its spans. out is dense."""
    row = tl.program_id(0).to(tl.int64)
    p, cols = tl.arange(0, PADDED), tl.arange(0, E)
    live = p < SPANS
    top = tl.load(stats + (row * SPANS + p) * 2, live, other=float("-inf"))
    weight = tl.load(stats + (row * SPANS + p) * 2 + 1, live, other=0.0)
    share = tl.exp(top - tl.max(top))
    part = tl.load(sums + (row * SPANS + p)[:, None] * E + cols[None, :], live[:, None] & (cols[None, :] < E), other=0.0)
    value = tl.sum(part * share[:, None], axis=0) / tl.sum(weight * share)
    tl.store(out + row * e + cols, value.to(out.dtype.element_ty), cols < e)


def split(pairs: int, s: int) -> tuple[int, int]:
    """How many spans the s keys of each of `pairs` (sequence, key head) are cut into, and keys per span: by shape alone, so a graph can keep it."""
    blocks = triton.cdiv(s, BLOCK)
    spans = max(1, min(SPANS_MAX, blocks, PROGRAMS // pairs))
    per = triton.cdiv(blocks, spans)
    return triton.cdiv(blocks, per), per * BLOCK


def attention(q: Tensor, keys: Tensor, values: Tensor, length: Tensor | None, out: Tensor, window: int | None = None) -> None:
    """Fill out (b, h, e), dense, from q (b, h, e), keys and values (b, k, s, e) with dense e, and the visible keys `length` (b,), the last `window` of them."""
    b, h, e = q.shape
    groups, s = keys.shape[1], keys.shape[2]
    if q.numel() == 0:
        return
    q, keys, values = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, keys, values))
    spans, span = split(b * groups, s)
    width = max(triton.next_power_of_2(e), 16)
    rows = 1 if h == groups else max(16, triton.next_power_of_2(h // groups))
    sums = empty(b, h, spans, width, dtype=float32, device=q.device)
    stats = empty(b, h, spans, 2, dtype=float32, device=q.device)
    partial_kernel[(b * groups, spans)](
        q, keys, values, length, sums, stats, s, e, h, groups, span, window or 0, e**-0.5, *q.stride()[:2], *keys.stride()[:3], *values.stride()[:3],
        LENGTH=length is not None, WINDOW=window is not None, SPANS=spans, ROWS=rows, E=width, BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip
    combine_kernel[(b * h,)](sums, stats, out, e, SPANS=spans, PADDED=triton.next_power_of_2(spans), E=width, num_warps=4)
