"""ai.lm2::ChunkAttention, version 1, in NumPy: what its kernel computes, bit for bit, and what it should be, in float64.

Knows arrays only; chunk_attention_body.py writes the operator into ONNX files, docs/ops.md is the specification.

Axes: b sequences, t positions of x, h query heads, k key/value heads, g = h / k, e width of a head, W rows of a cache, w pairs that turn, s keys
that a row sees. x is (b, t, (h + 2k) e), queries with keys and values to be written, or (b, t, h e), queries alone.
"""

from typing import NamedTuple

import numpy as np

NAME = "ChunkAttention"
INPUTS = ("x", "past_key", "past_value", "past_length", "cos", "sin", "bias")
OUTPUTS = ("y", "present_key", "present_value")
SPAN, LANES = 128, 16
"""Keys that are weighed together, from key 0 on; weights are summed in so many lanes."""
LEAST = np.float32(-87)
"""Below it e^x counts as 0."""
POWERS = tuple(np.float32(float.fromhex(c)) for c in ("0x1.6a2434p-10", "0x1.1239e2p-7", "0x1.5558f2p-5", "0x1.555492p-3", "0x1.fffffcp-2"))
"""Coefficients of r^6 .. r^2 in e^r."""
LOG2E, LN2, LN2_REST = (np.float32(float.fromhex(c)) for c in ("0x1.715476p+0", "0x1.62e430p-1", "-0x1.05c610p-29"))

Floats = np.ndarray | np.float32


class Call(NamedTuple):
    """The inputs, as the operator takes them. Caches (b, k, W, e); past_length int64 (b) or (1); cos, sin (positions, w); bias broadcasts to (b, h, t, W)."""

    x: np.ndarray
    past_key: np.ndarray
    past_value: np.ndarray
    past_length: np.ndarray
    cos: np.ndarray
    sin: np.ndarray
    bias: np.ndarray


NO_BIAS = np.zeros((1, 1, 1, 1), np.float32)
"""The bias of a call that has none."""
NO_TURN = np.zeros((1, 0), np.float32)
"""cos and sin of a call whose heads do not turn."""


def fused(a: Floats, b: Floats, c: Floats) -> np.ndarray:
    """a b + c of float32, rounded once. The product is exact in float64, the sum is rounded to odd: rounding it again loses nothing."""
    product = np.asarray(a, np.float64) * b
    total = np.asarray(product + c)
    back = total - product
    lost = (product - (total - back)) + (c - back)
    bits = total.view(np.int64)
    toward = np.where((lost > 0) == (total > 0), 1, -1)
    odd = np.where((lost != 0) & np.isfinite(total) & (bits & 1 == 0), bits + toward, bits)
    return odd.view(np.float64).astype(np.float32)


def power(x: np.ndarray) -> np.ndarray:
    """e^x of float32 numbers that are at most 0, to 1 ulp."""
    y = np.where(x < LEAST - 1, LEAST - 1, x)
    rounder = np.float32(1.5 * 2**23)
    shifted = fused(y, LOG2E, rounder)
    n = shifted - rounder
    r = fused(n, -LN2_REST, fused(n, -LN2, y))
    p = np.full_like(r, POWERS[0])
    for c in (*POWERS[1:], np.float32(1), np.float32(1)):
        p = fused(p, r, c)
    two = ((shifted.view(np.uint32) << np.uint32(23)) + np.uint32(0x3F800000)).view(np.float32)
    return np.where(x < LEAST, np.float32(0), p * two)


def turned(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """x (n, t, e) at positions whose rows of the tables are cos, sin (t, w): number i < w turns with number i + w, the others stay."""
    w = cos.shape[-1]
    a, b = x[..., :w], x[..., w : 2 * w]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, x[..., 2 * w :]], -1)  # (n, t, e)


class Placed(NamedTuple):
    """One sequence of a call: q (h, t, e) turned, caches (k, W, e) with what is written, keys that each row sees (t), bias (h, t, W)."""

    q: np.ndarray
    key: np.ndarray
    value: np.ndarray
    seen: np.ndarray
    bias: np.ndarray


def placed(call: Call, n: int, heads: int) -> Placed:
    """Sequence n of a call, in the arrays' own dtype."""
    _, t, width = call.x.shape
    k, rows, e = call.past_key.shape[1:]
    past = int(call.past_length[n if len(call.past_length) > 1 else 0])
    writes = width // e != heads
    parts = call.x[n].reshape(t, width // e, e).swapaxes(0, 1)  # (h [+ 2k], t, e)
    cos, sin = (a[past : past + t] if a.shape[1] else np.zeros((t, 0), a.dtype) for a in (call.cos, call.sin))  # (t, w)
    key, value = call.past_key[n].copy(), call.past_value[n].copy()
    if writes:
        key[:, past : past + t] = turned(parts[heads : heads + k], cos, sin)
        value[:, past : past + t] = parts[heads + k :]
    seen = past + (np.arange(t) + 1 if writes else np.zeros(t, int))
    bias = np.broadcast_to(call.bias, (len(call.x), heads, t, rows))[n]
    return Placed(turned(parts[:heads], cos, sin), key, value, seen, bias)


def _chain(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a (i) times b (i, j), products added one after another: (j)."""
    sums = np.zeros(b.shape[1], np.float32)  # (j)
    for i in range(len(a)):
        sums = fused(a[i], b[i], sums)
    return sums


def _row(q: np.ndarray, key: np.ndarray, value: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """One query row q (e), scaled, against the keys and values (s, e) that it sees: (e)."""
    total, most, weight = np.zeros(len(q), np.float32), np.float32(0), np.zeros((), np.float32)
    for start in range(0, len(key), SPAN):
        scores = _chain(q, key[start : start + SPAN].T) + bias[start : start + SPAN]  # (s)
        largest = np.float32(np.finfo(np.float32).min)
        for score in scores:
            largest = largest if largest > score else score
        weights = power(scores - largest)  # (s)
        lanes = np.zeros((-(-len(weights) // LANES), LANES), np.float32)
        lanes.reshape(-1)[: len(weights)] = weights
        line = np.zeros(LANES, np.float32)
        for lane in lanes:
            line = line + lane
        while len(line) > 1:
            line = line[: len(line) // 2] + line[len(line) // 2 :]
        part = _chain(weights, value[start : start + SPAN])  # (e)
        if start == 0:
            total, most, weight = part, largest, line[0]
            continue
        top = most if most > largest else largest
        old, fresh = power(np.array([most - top, largest - top], np.float32))
        total, weight, most = fused(part, fresh, total * old), fused(line[0], fresh, weight * old), top
    return total * (np.float32(1) / weight) if len(key) else total


def reference(call: Call, heads: int, scale: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the kernel computes, bit for bit: y (b, t, h e) and the caches as they will be. scale 0: 1 / sqrt(e)."""
    b, t, _ = call.x.shape
    k, _, e = call.past_key.shape[1:]
    factor = np.float32(scale) if scale else np.float32(1) / np.sqrt(np.float32(e))
    y = np.zeros((b, t, heads, e), np.float32)
    caches = call.past_key.copy(), call.past_value.copy()
    with np.errstate(all="ignore"):
        for n in range(b):
            s = placed(call, n, heads)
            caches[0][n], caches[1][n] = s.key, s.value
            for j in range(heads):
                own = j // (heads // k)
                for i, seen in enumerate(s.seen):
                    y[n, i, j] = _row(s.q[j, i] * factor, s.key[own, :seen], s.value[own, :seen], s.bias[j, i, :seen])
    return y.reshape(b, t, heads * e), *caches


def exact(call: Call, heads: int, scale: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """y in float64 (b, t, h e), and (b, t, h) of each head's row how far the kernel's y may be from it (docs/ops.md)."""
    wide = Call(*(a if name == "past_length" else a.astype(np.float64) for name, a in zip(INPUTS, call, strict=True)))
    b, t, _ = call.x.shape
    k, _, e = call.past_key.shape[1:]
    factor = scale or e**-0.5
    y, near = np.zeros((b, t, heads, e)), np.zeros((b, t, heads))
    with np.errstate(all="ignore"):
        for n in range(b):
            s = placed(wide, n, heads)
            for j in range(heads):
                own = j // (heads // k)
                for i, seen in enumerate(s.seen):
                    if seen == 0:
                        continue
                    key, value, bias = s.key[own, :seen], s.value[own, :seen], s.bias[j, i, :seen]  # (s, e) twice, (s)
                    scores = key @ s.q[j, i] * factor + bias  # (s)
                    weights = np.exp(scores - scores.max())  # (s)
                    y[n, i, j] = weights @ value / weights.sum()
                    sizes = np.linalg.norm(key, axis=-1) * np.linalg.norm(s.q[j, i]) * abs(factor) + np.abs(bias)  # (s)
                    most = sizes[np.isfinite(sizes)].max(initial=0)
                    near[n, i, j] = 2.0**-24 * (4 * (e + 8) * most + seen + 40) * np.abs(value).max()
    return y.reshape(b, t, heads * e), near
