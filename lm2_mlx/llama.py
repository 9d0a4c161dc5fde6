"""The Llama parts in MLX, and what a `backbone` block changes of them: norm, rotary embedding, grouped-query attention, SwiGLU.

Knows nothing of memory, chunks or files.

Axes: b batch, t positions of a call, s positions so far, d hidden, h query heads, k key/value heads, e head width.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..models.config import LM2Config
from .linear import Linear, apply_stacked

# Queries per attention block on a CPU, where softmax is scalar code and half of a causal square is masked. A GPU's kernel skips it itself.
CPU_BLOCK = 64

# Turns freshly projected keys and values (b, k, t, e) into all of them so far (b, k, s, e).
Cache = Callable[[mx.array, mx.array], tuple[mx.array, mx.array]]


class RMSNorm:
    """Root-mean-square norm over the last axis with a weight (d,) float32, computed in float32; the result is float32.

    On a CPU the squares are added up in two stages: MLX adds a row one by one there, and beside one activation in the thousands, as trained
    Llamas have them, the others' sum loses digits (relative error 1.5e-6 against 1e-7; a bank's NMSE was 26 times the PyTorch reference's).
    """

    def __init__(self, weight: mx.array, eps: float, cpu: bool):
        self.weight, self.eps = weight, eps
        width = weight.size
        self.stage = next(n for n in range(math.isqrt(width), 0, -1) if width % n == 0) if cpu else 0

    def __call__(self, x: mx.array) -> mx.array:
        x = x.astype(mx.float32)
        if not self.stage:
            return mx.fast.rms_norm(x, self.weight, self.eps)
        squares = mx.unflatten(x * x, -1, (self.stage, -1)).sum(axis=-1).sum(axis=-1, keepdims=True)  # (b, t, 1)
        return x * mx.rsqrt(squares / x.shape[-1] + self.eps) * self.weight  # (b, t, d)


def rope_tables(config: LM2Config, positions: int) -> tuple[mx.array, mx.array]:
    """Cosines and sines (positions, e / 2) float32, rounded as the PyTorch reference rounds them: float32 frequencies, then float32 angles.

    Where layers turn in two ways, those of the second stand beside the first's.

    Tables, not `mx.fast.rope`: that one divides by the frequency's reciprocal and works the angles out again in each layer.
    """
    inverse = np.array([f for r in config.ropes for f in r.inverse_frequencies(config.head_dim)], dtype=np.float32)  # (e / 2,)
    angles = np.outer(np.arange(positions, dtype=np.float32), inverse)  # (s, e / 2)
    size = np.array([a for r in config.ropes for a in r.amplitudes(config.head_dim)], dtype=np.float32)  # (e / 2,)
    return mx.array(np.cos(angles) * size), mx.array(np.sin(angles) * size)


def table(tables: mx.array, which: int, half: int) -> mx.array:
    """The columns (.., e / 2) of one way of turning."""
    return tables if tables.shape[-1] == half else tables[..., which * half : (which + 1) * half]


def rotate(x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
    """Rotary embedding of x (b, t, h, e) by tables (t, 1, e / 2), in float32, back in x's dtype: dimension i turns with dimension i + e/2."""
    half = x.shape[-1] // 2
    low, high = x[..., :half], x[..., half:]  # (b, t, h, e / 2)
    return mx.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1).astype(x.dtype)  # (b, t, h, e)


def attention(q: mx.array, k: mx.array, v: mx.array, cpu: bool, mask: str | mx.array | None = None) -> mx.array:
    """softmax(q k^T / sqrt(e)) v: q (b, h, t, e), k (b, k, s, e), v (b, k, s, any) -> (b, h, t, any) in v's dtype; mask `causal`, None, or a term (b, 1, t, s),
    or what is seen, bool.

    On a CPU half precisions are widened first: scores are rounded to them there, while a GPU's kernel keeps float32 inside.
    """
    scale, dtype = q.shape[-1] ** -0.5, v.dtype
    if cpu and dtype != mx.float32:
        q, k, v = (a.astype(mx.float32) for a in (q, k, v))
    mask = mask.astype(q.dtype) if isinstance(mask, mx.array) and mask.dtype != mx.bool_ else mask
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask).astype(dtype)


def attend(q: mx.array, k: mx.array, v: mx.array, cpu: bool, block: int = CPU_BLOCK, window: int | None = None) -> mx.array:
    """Causal grouped-query attention: q (b, h, t, e) are the last t of the s positions of k, v (b, k, s, e). Returns (b, h, t, e).

    window: how many positions each query sees at most, its own counted; None: all up to it. On a CPU, `block` queries at a time, each looking no
    further than its own end.
    """
    b, h, t, e = q.shape
    if t == 1:
        k, v = _reached(k, t, window), _reached(v, t, window)  # (b, k, s, e) each
        q = q.reshape(b, k.shape[1], h // k.shape[1], e)  # the heads of a group look at the same keys
        return attention(q, k, v, cpu).reshape(b, h, 1, e)
    if not cpu or t <= block:
        return _block(q, k, v, cpu, window)  # (b, h, t, e)
    out, past = [], k.shape[2] - t
    for start in range(0, t, block):
        end = min(t, start + block)
        out.append(_block(q[:, :, start:end], k[:, :, : past + end], v[:, :, : past + end], cpu, window))
    return mx.concatenate(out, axis=2)  # (b, h, t, e)


def _reached(x: mx.array, t: int, window: int | None) -> mx.array:
    """Of keys or values (b, k, s, e), those that one of the last t positions sees."""
    return x if window is None else x[:, :, max(0, x.shape[2] - (t + window - 1)) :]


def _block(q: mx.array, k: mx.array, v: mx.array, cpu: bool, window: int | None) -> mx.array:
    """As `attend`, all queries at once."""
    t = q.shape[2]
    k, v = _reached(k, t, window), _reached(v, t, window)  # (b, k, s, e) each
    s = k.shape[2]
    if window is None or s <= window:
        return attention(q, k, v, cpu, "causal")  # (b, h, t, e)
    back = mx.arange(s - t, s)[:, None] - mx.arange(s)  # (t, s)
    return attention(q, k, v, cpu, (back >= 0) & (back < window))  # (b, h, t, e)


@dataclass
class Attention:
    """The projections of one layer's self-attention. qkv is one matrix, or three where their quantisation differs.

    q_norm, k_norm: of queries and keys before they turn, of each head or of all as a whole. turns: in which of the ways of the tables they turn, None: not. output_norm: of what joins
    the residual stream. window: how many positions a token sees at most, None: all.
    """

    heads: int
    groups: int
    width: int
    qkv: Sequence[Linear]
    o: Linear
    q_norm: RMSNorm | None = None
    k_norm: RMSNorm | None = None
    turns: int | None = 0
    output_norm: RMSNorm | None = None
    window: int | None = None

    def project(self, x: mx.array, cos: mx.array, sin: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """x (b, t, d) normed, tables (t, 1, e / 2) -> q (b, h, t, e), k and v (b, k, t, e)."""
        b, t, _ = x.shape
        turning = self.heads + self.groups
        qkv = apply_stacked(self.qkv, x).reshape(b, t, turning + self.groups, self.width)  # (b, t, h + 2k, e)
        turned = qkv[:, :, :turning]  # (b, t, h + k, e)
        if self.q_norm is not None and self.k_norm is not None:
            parts = [normed(self.q_norm, turned[:, :, : self.heads]), normed(self.k_norm, turned[:, :, self.heads :])]
            turned = mx.concatenate(parts, axis=2)  # (b, t, h + k, e)
        if self.turns is not None:
            turned = rotate(turned, *(table(x, self.turns, self.width // 2) for x in (cos, sin)))
        turned = turned.swapaxes(1, 2)  # (b, h + k, t, e)
        return turned[:, : self.heads], turned[:, self.heads :], qkv[:, :, turning:].swapaxes(1, 2)

    def output(self, a: mx.array) -> mx.array:
        """a (b, h, t, e) -> (b, t, d)."""
        out = self.o(a.swapaxes(1, 2).reshape(a.shape[0], a.shape[2], -1))  # (b, t, d)
        return out if self.output_norm is None else self.output_norm(out).astype(out.dtype)


def normed(norm: RMSNorm, x: mx.array) -> mx.array:
    """Heads x (b, t, h, e) normed each, by a weight (e,), or as a whole, by a weight (h e,); in x's dtype."""
    b, t, h, e = x.shape
    return (norm(x) if norm.weight.size == e else norm(x.reshape(b, t, h * e)).reshape(b, t, h, e)).astype(x.dtype)


@dataclass
class MLP:
    """SwiGLU, or the same with another activation. gate_up is one matrix, or two where their quantisation differs.

    silu: the gate's activation, else GELU by its tanh formula. output_norm: of what joins the residual stream.
    """

    gate_up: Sequence[Linear]
    down: Linear
    silu: bool = True
    output_norm: RMSNorm | None = None

    def __call__(self, x: mx.array) -> mx.array:
        gate, up = mx.split(apply_stacked(self.gate_up, x), 2, axis=-1)  # (b, t, ffn) each
        wide = gate.astype(mx.float32)  # (b, t, ffn)
        active = wide * mx.sigmoid(wide) if self.silu else gelu_tanh(wide)  # (b, t, ffn)
        out = self.down(active.astype(gate.dtype) * up)  # (b, t, d)
        return out if self.output_norm is None else self.output_norm(out).astype(out.dtype)


def gelu_tanh(x: mx.array) -> mx.array:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    return 0.5 * x * (1.0 + mx.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)))
