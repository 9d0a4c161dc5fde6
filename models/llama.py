"""The Llama parts, and what a `backbone` block changes of them: RMSNorm, rotary embedding, grouped-query attention over a cache, SwiGLU.

Knows nothing of memory or chunks.

Axes: b batch, t positions of a call, s positions so far (cached ones included), d hidden, h query heads, k key/value heads, e head width.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import LM2Config
from .kernels.norm import rms_norm

# Above this many query rows, causal attention on CPU is faster in blocks that skip the keys no row of them sees (1.3x at 500 rows).
CPU_QUERY_ROWS = 128

# Turns freshly projected keys and values (b, k, t, e) into all of them so far (b, k, s, e).
Cache = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of norms, gates and the bank beside a model dtype: float32 for half precisions, else the dtype itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


class RMSNorm(nn.Module):
    """Root-mean-square norm over d with a learned weight (d,), computed in the weight's dtype; the result has that dtype too."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))  # (d,)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps, self.weight.dtype)  # (b, t, d)


def rope_tables(config: LM2Config, positions: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines (positions, e) of the rotary embedding, computed in at least float32, halves repeated (Hugging Face's layout).

    Where layers turn in two ways, those of the second stand beside the first's: (positions, 2 e), and `table` takes them apart.
    """
    exact, cosines, sines = wide(dtype), [], []
    for rope in config.ropes:
        inverse = torch.tensor(rope.inverse_frequencies(config.head_dim), dtype=exact)  # (e / 2,)
        angles = torch.outer(torch.arange(positions, dtype=exact), inverse)  # (s, e / 2)
        size = torch.tensor(rope.amplitudes(config.head_dim), dtype=exact)  # (e / 2,)
        cosines += [angles.cos() * size] * 2
        sines += [angles.sin() * size] * 2
    return torch.cat(cosines, dim=-1).to(device, dtype), torch.cat(sines, dim=-1).to(device, dtype)


def table(tables: Tensor, which: int, width: int) -> Tensor:
    """The columns (.., e) of one way of turning."""
    return tables if tables.shape[-1] == width else tables[..., which * width : (which + 1) * width]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x (b, h, t, e) by tables (t, e), or broadcastable ones: dimension i turns with dimension i + e/2."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)  # (b, h, t, e)
    return (x * cos + turned * sin).to(x.dtype)  # (b, h, t, e)


def _query_blocks(t: int, s: int) -> list[tuple[int, int]]:
    """Start of each block of query rows, and how many of the s keys its last row may see."""
    return [(a, s - t + min(t, a + CPU_QUERY_ROWS)) for a in range(0, t, CPU_QUERY_ROWS)]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, window: int | None = None) -> Tensor:
    """Causal grouped-query attention: q (b, h, t, e) are the last t of the s positions of k, v (b, k, s, e). Returns (b, h, t, e).

    window: how many positions each query sees at most, its own counted; None: all up to it. mask: what each query sees instead, bool, broadcastable to
    (b, h, t, s).
    """
    b, h, t, e = q.shape
    if mask is not None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=k.shape[1] != h)
    if window is not None and k.shape[2] > t + window - 1:  # what no query of the call sees is left out
        k, v = k[:, :, -(t + window - 1) :], v[:, :, -(t + window - 1) :]  # (b, k, s, e) each
    groups, s = k.shape[1], k.shape[2]
    if t == 1:
        q = q.reshape(b, groups, h // groups, e)  # the heads of a group look at the same keys: no copies of k and v
        return F.scaled_dot_product_attention(q, k, v).reshape(b, h, 1, e)
    gqa = groups != h
    if t > CPU_QUERY_ROWS and q.device.type == "cpu":
        parts = [attend(q[:, :, a : a + CPU_QUERY_ROWS], k[:, :, :end], v[:, :, :end], window=window) for a, end in _query_blocks(t, s)]
        return torch.cat(parts, dim=2)  # (b, h, t, e)
    hidden = window is not None and window < s  # from somebody, by the window
    if s == t and not hidden:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa)
    mask = torch.ones(t, s, dtype=torch.bool, device=q.device).tril(s - t)  # (t, s)
    if window is not None and hidden:
        mask = mask.triu(s - t - window + 1)  # (t, s)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=gqa)


def _output_norm(config: LM2Config) -> RMSNorm | None:
    return None if config.backbone.norms == "before" else RMSNorm(config.hidden_size, config.rms_norm_eps)


class Embedding(nn.Embedding):
    """Token embeddings (.., d), times a factor where the backbone has one."""

    def __init__(self, config: LM2Config):
        super().__init__(config.vocab_size, config.hidden_size)
        self.scale = config.backbone.embedding_scale

    def forward(self, ids: Tensor) -> Tensor:
        x: Tensor = super().forward(ids)
        return x if self.scale == 1 else x * self.scale


class Attention(nn.Module):
    """Self-attention of one layer inside a chunk. q, k, v are one matrix in memory (`qkv_proj`), three tensors on disk."""

    def __init__(self, config: LM2Config, layer: int = 0):
        super().__init__()
        b, eps = config.backbone, config.rms_norm_eps
        self.heads, self.groups, self.width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        rows = (self.heads + 2 * self.groups) * self.width
        self.qkv_proj = nn.Linear(config.hidden_size, rows, bias=config.attention_bias)
        self.o_proj = nn.Linear(self.heads * self.width, config.hidden_size, bias=config.attention_bias)
        self.by_head, self.turns, self.window = b.qk_norm == "head", b.turns(layer), b.window(layer)
        q, k = (self.width, self.width) if self.by_head else (self.heads * self.width, self.groups * self.width)
        self.q_norm = None if b.qk_norm == "none" else RMSNorm(q, eps)
        self.k_norm = None if b.qk_norm == "none" else RMSNorm(k, eps)
        self.output_norm = _output_norm(config)

    def project(self, x: Tensor) -> Tensor:
        """Queries, keys and values side by side, (.., (h + 2k) e), of x (.., d): normed, if the backbone norms them, and not turned yet."""
        qkv: Tensor = self.qkv_proj(x)  # (.., (h + 2k) e)
        if self.q_norm is None or self.k_norm is None:
            return qkv
        q, k, v = qkv.split([n * self.width for n in (self.heads, self.groups, self.groups)], dim=-1)
        if self.by_head:
            q, k = (norm(part.unflatten(-1, (-1, self.width))).flatten(-2) for norm, part in ((self.q_norm, q), (self.k_norm, k)))
        else:
            q, k = self.q_norm(q), self.k_norm(k)
        return torch.cat((q.to(v.dtype), k.to(v.dtype), v), dim=-1)  # (.., (h + 2k) e)

    def output(self, a: Tensor) -> Tensor:
        """What joins the residual stream (.., d) of the heads' a (.., h e)."""
        out: Tensor = self.o_proj(a)
        return out if self.output_norm is None else self.output_norm(out).to(out.dtype)  # (.., d)

    def turned(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (b, h, t, e), keys and values (b, k, t, e) of x (b, t, d). cos, sin: of `rope_tables`, (t, e), or broadcastable to (b, h, t, e)."""
        b, t, _ = x.shape
        qkv = self.project(x).view(b, t, self.heads + 2 * self.groups, self.width).transpose(1, 2)  # (b, h + 2k, t, e)
        turned = qkv[:, : self.heads + self.groups]  # (b, h + k, t, e)
        if self.turns is not None:
            turned = rotate(turned, *(table(x, self.turns, self.width) for x in (cos, sin)))
        q, k = turned.split((self.heads, self.groups), dim=1)
        return q, k, qkv[:, self.heads + self.groups :]

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: Cache, last: bool = False, mask: Tensor | None = None) -> Tensor:
        """Output (b, t, d) of all positions, or (b, 1, d) of the last one only; keys and values of all enter the cache either way.

        cos, sin: as in `turned`. mask: as in `attend`, for other than causal attention in the layer's window.
        """
        q, k, v = self.turned(x, cos, sin)
        k, v = cache(k, v)  # (b, k, s, e)
        a = attend(q[:, :, -1:] if last else q, k, v, mask, self.window)  # (b, h, t or 1, e)
        return self.joined(a)

    def joined(self, a: Tensor) -> Tensor:
        """What joins the residual stream (b, t, d) of what the heads saw, a (b, h, t, e)."""
        return self.output(a.transpose(1, 2).reshape(len(a), a.shape[2], -1))  # (b, t, d)


class MLP(nn.Module):
    """SwiGLU, or the same with another activation. gate and up are one matrix in memory (`gate_up_proj`), two tensors on disk."""

    def __init__(self, config: LM2Config):
        super().__init__()
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.silu = config.backbone.activation == "silu"
        self.output_norm = _output_norm(config)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)  # (b, t, ffn) each
        out: Tensor = self.down_proj((F.silu(gate) if self.silu else F.gelu(gate, approximate="tanh")) * up)
        return out if self.output_norm is None else self.output_norm(out).to(out.dtype)  # (b, t, d)
