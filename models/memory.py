"""The two memory cells, as one layer of them. Knows one layer and one call; chunks, caches and sessions are others' business.

Axes: b batch, t positions of a call, s positions of the chunk so far, n rows of the bank, d hidden, h memory heads, e memory head width.
Source: arXiv 2502.06049 equations 1-6. `gated` is their causal form, `released` what the authors' checkpoints compute.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import LM2Config
from .kernels.gated import gated_memory_finish
from .kernels.released import released_close, released_open
from .kernels.update import gated_memory_update
from .llama import Cache, RMSNorm
from .topics import Topics


class Gates(nn.Linear):
    """Output and forget gate's logits (.., 2d) of what was read (.., d); of either alone, (.., d), with its half of the matrix."""

    def output(self, read: Tensor) -> Tensor:
        d = self.out_features // 2
        return F.linear(read, self.weight[:d], self.bias[:d])  # (.., d)

    def forget(self, read: Tensor) -> Tensor:
        d = self.out_features // 2
        return F.linear(read, self.weight[d:], self.bias[d:])  # (.., d)


class GatedMemory(nn.Module):
    """Cell `gated`: reads the layer's own bank as it stood at the chunk's start, rewrites row t from token t.

    Matrices with the same input are one in memory (`kv_proj`, `token_proj`, `read_proj`), several tensors on disk.

    E = attention over the bank; add = sigmoid(W_out E + b) * E; new row = sigmoid(W_in u + b) * tanh(E + W_c u) + sigmoid(W_forget E + b) * old
    (config `content: token`: tanh(W_c u)). A row's key is made of the row, with `keys: pair` of the one before it in the ring as well; its value is made
    of the row, with `values: topics` of its row in the topics' bank as well.
    """

    def __init__(self, config: LM2Config, layer: int = 0):
        super().__init__()
        m, d = config.memory, config.hidden_size
        self.heads, self.width, self.both = m.heads, m.head_dim, m.content == "both"
        inner = m.heads * m.head_dim
        self.norm = RMSNorm(d, config.rms_norm_eps)
        self.bank_norm = RMSNorm(d, config.rms_norm_eps)
        self.q_proj = nn.Linear(d, inner, bias=False)
        self.kv_proj = nn.Linear(d, 2 * inner, bias=False)
        self.k_before_proj = nn.Linear(d, inner, bias=False) if m.keys == "pair" else None
        self.topic_norm = RMSNorm(d, config.rms_norm_eps) if m.values == "topics" else None
        self.v_topic_proj = nn.Linear(d, inner, bias=False) if m.values == "topics" else None
        self.o_proj = nn.Linear(inner, d, bias=False) if m.output_projection else None
        self.token_proj = nn.Linear(d, 2 * d, bias=False)  # input gate, content
        self.read_proj = Gates(d, 2 * d)  # output gate, forget gate
        self.input_bias = nn.Parameter(torch.zeros(d))  # (d,)
        self.scale = nn.Parameter(torch.ones(d)) if m.scale else None  # (d,)
        self.open_gate = nn.Linear(d, 1) if m.opens == "both" else None
        self.topics = Topics(config) if m.topics and layer == m.layers[0] else None

    def keys_values(self, bank: Tensor, dtype: torch.dtype, places: Tensor | None = None, told: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """K and V of a bank (b, n, d) in the model's dtype, each (b, h, n, e): computed once per chunk. Zero banks give zeros.

        places (p,): of these rows alone, (b, h, p, e). told (b, n, d): the topics' bank, which `values: topics` reads.
        """
        rows = bank if places is None else bank[:, places]  # (b, p, d)
        b, p, _ = rows.shape
        r = self.bank_norm(rows).to(dtype)  # (b, p, d)
        k, v = self.kv_proj(r).view(b, p, 2 * self.heads, self.width).transpose(1, 2).chunk(2, dim=1)  # (b, h, p, e) each
        if self.k_before_proj is not None:
            before = r.roll(1, dims=1) if places is None else self.bank_norm(bank[:, places - 1]).to(dtype)  # (b, p, d); row -1 is the last
            k = k + self.k_before_proj(before).view(b, p, self.heads, self.width).transpose(1, 2)
        if self.v_topic_proj is not None and self.topic_norm is not None:
            assert told is not None
            words = self.topic_norm(told if places is None else told[:, places]).to(dtype)  # (b, p, d)
            v = v + self.v_topic_proj(words).view(b, p, self.heads, self.width).transpose(1, 2)
        return k, v

    def opened(self, gates: Tensor, u: Tensor) -> Tensor:
        """Output and forget gate's logits (..., 2d) with what the token's normed state u (..., d) says of the first."""
        if self.open_gate is None:
            return gates
        output, forget = gates.chunk(2, dim=-1)  # (..., d) each
        return torch.cat((output + self.open_gate(u), forget), dim=-1)  # (..., 2d)

    def answered(self, u: Tensor, read: Tensor) -> tuple[Tensor, Tensor]:
        """What joins the attention output, (b, t, d) in read's dtype, of normed states u (b, t, d) and what was read (b, h, t, e); and what a row is made
        of beside u, (b, t, d). Nothing is multiplied that only the row needs."""
        dtype, read = read.dtype, self.brought(read).to(u.dtype)  # (b, t, d)
        gate = self.read_proj.output(read)  # (b, t, d)
        add = torch.sigmoid(gate if self.open_gate is None else gate + self.open_gate(u)) * read  # (b, t, d)
        return (add if self.scale is None else self.scale * add).to(dtype), read

    def rewritten(self, writes: Tensor, old: Tensor) -> tuple[Tensor, Tensor]:
        """The rows (b, p, d) of p tokens whose `writes` (b, p, 2d) waited: the normed state and what was read (zeros: nothing), side by side. Beside them
        `told` of the tokens, (b, p, 1). old (b, p, d)."""
        u, read = writes.chunk(2, dim=-1)  # (b, p, d) each
        token = self.token_proj(u)  # (b, p, 2d)
        i, z = token.chunk(2, dim=-1)  # (b, p, d) each
        rows = gated_memory_update(i + self.input_bias, self.read_proj.forget(read), read + z if self.both else z, old)
        return rows, self.told(token)

    def said(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The normed state (.., d) of the residual stream x (.., d), and what it says of the input gate and the content, (.., 2d)."""
        u = self.norm(x)  # (.., d)
        return u, self.token_proj(u)

    def told(self, token: Tensor) -> Tensor:
        """How far a token's row is written: the mean (.., 1) of its input gate over the channels. token (.., 2d) of `said`."""
        return torch.sigmoid(token[..., : len(self.input_bias)] + self.input_bias).mean(-1, keepdim=True)  # (.., 1)

    def forward(
        self, x: Tensor, kv: tuple[Tensor, Tensor] | None, old: Tensor | None, looks: Tensor | None = None, said: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor | None, Tensor]:
        """x (b, t, d) residual stream; kv of the bank, or None for a bank of zeros; old (b, t, d) rows of these positions, None where the new ones wait;
        looks (b, t, n): what topics add to the attention's logits, this memory's gain in it; said: of x, where that is known.

        Returns what joins the attention output, (b, t, d) in x's dtype (None: exactly nothing), and the new rows (b, t, d), or what `rewritten` makes
        them of, (b, t, 2d).
        """
        if old is None:
            u = self.norm(x)  # (b, t, d)
            add, read = (None, torch.zeros_like(u)) if kv is None else self.answered(u, look(self.asked(u, x.dtype), kv, looks))
            return add, torch.cat((u, read), dim=-1)  # (b, t, 2d)
        u, token = self.said(x) if said is None else said  # (b, t, d), (b, t, 2d)
        if kv is None:
            i, z = token.chunk(2, dim=-1)  # (b, t, d) each
            f = self.read_proj.bias.chunk(2)[1]  # (d,)
            return None, gated_memory_update(i + self.input_bias, f.expand_as(old), z, old)
        return self.written(u, token, look(self.asked(u, x.dtype), kv, looks), old)

    def asked(self, u: Tensor, dtype: torch.dtype) -> Tensor:
        """Queries (b, h, t, e) of normed states u (b, t, d), in the model's dtype."""
        q: Tensor = self.q_proj(u.to(dtype))  # (b, t, h e)
        return q.unflatten(-1, (self.heads, self.width)).transpose(1, 2)  # (b, h, t, e)

    def brought(self, read: Tensor) -> Tensor:
        """What was read by all heads (b, h, t, e), as wide as the residual stream, (b, t, d)."""
        read = read.transpose(1, 2).flatten(2)  # (b, t, h e)
        return read if self.o_proj is None else self.o_proj(read)  # (b, t, d)

    def written(self, u: Tensor, token: Tensor, read: Tensor, old: Tensor) -> tuple[Tensor, Tensor]:
        """What joins the attention output, in read's dtype, and the new rows, (b, t, d) each: of `said`'s u and token, what was read (b, h, t, e), and the
        old rows (b, t, d)."""
        dtype, read = read.dtype, self.brought(read)  # (b, t, d)
        gates = self.opened(self.read_proj(read.to(u.dtype)), u)  # (b, t, 2d)
        return gated_memory_finish(token, gates, read, old, self.input_bias, self.scale, dtype, self.both)  # (b, t, d) each


def look(q: Tensor, kv: tuple[Tensor, Tensor], looks: Tensor | None = None) -> Tensor:
    """What queries q (b, h, t, e) read of a bank's K and V (b, h, n, e), in q's dtype. looks (b, t, n): added to the logits."""
    mask = None if looks is None else looks[:, None].to(q.dtype)  # (b, 1, t, n)
    return F.scaled_dot_product_attention(q, *kv, attn_mask=mask)  # (b, h, t, e)


class TokenGate(nn.Module):
    """The released input gate's projection: relu(scale * x) pooled over tokens, then a linear map to both gates (b, t, 2n)."""

    def __init__(self, d: int, n: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(d))  # (d,)
        self.weight = nn.Parameter(torch.zeros(2 * n, d))
        self.bias = nn.Parameter(torch.zeros(2 * n))  # (2n,)

    def lifted(self, x: Tensor) -> Tensor:
        return F.relu(self.scale * x)  # (b, t, d)

    def forward(self, pooled: Tensor) -> Tensor:
        return F.linear(pooled, self.weight, self.bias)  # (b, t or 1, 2n)


class ReleasedMemory(nn.Module):
    """Cell `released`: one bank passes through all layers; row t sees rows <= t and is rewritten in each layer. T = N = D."""

    def __init__(self, config: LM2Config):
        super().__init__()
        m, d, n = config.memory, config.hidden_size, config.memory.slots
        self.heads, self.width = m.heads, m.head_dim
        self.query_proj = nn.Linear(n, n)
        self.key_proj = nn.Linear(n, n)
        self.value_proj = nn.Linear(n, n)
        self.mlp = nn.Linear(n, n)
        self.norm1 = nn.LayerNorm(n, eps=1e-5)
        self.norm2 = nn.LayerNorm(n, eps=1e-5)
        self.token_gate = TokenGate(d, n)
        self.bank_gate = nn.Linear(n, 2 * n)
        self.input_bias = nn.Parameter(torch.zeros(()))
        self.forget_bias = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, rows: Tensor, cache: Cache, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """x (b, t, d) attention output; rows (b, t, d) the bank's rows of these positions as the layer below left them.

        `cache` keeps keys and values of rows <= t; pooled (b, 1 or t, d) is the mean of token_gate.lifted over the chunk, or up to each token.
        Returns what joins the attention output, (b, t, d) in x's dtype, and the rows as this layer leaves them (the same numbers).
        """
        b, t, _ = x.shape
        heads = (b, t, self.heads, self.width)
        r = rows.to(x.dtype)
        q = self.query_proj(x).view(heads).transpose(1, 2)  # (b, h, t, e)
        k, v = cache(self.key_proj(r).view(heads).transpose(1, 2), self.value_proj(r).view(heads).transpose(1, 2))  # (b, h, s, e)
        s = k.shape[2]
        mask = torch.ones(t, s, dtype=torch.bool, device=x.device).tril(s - t)  # (t, s)
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(b, t, -1)  # (b, t, n)
        rows = self.rewrite(a, rows, pooled)
        return rows.to(x.dtype), rows

    def rewrite(self, a: Tensor, rows: Tensor, pooled: Tensor) -> Tensor:
        """New rows (b, t, n) from what was read, a (b, t, n), the old rows and the pooled tokens (b, 1 or t, d)."""
        z, bounded = released_open(rows, a, self.norm1.weight, self.norm1.bias, self.norm1.eps)  # (b, t, n) each
        u = F.relu(self.mlp(F.relu(self.mlp(z))))  # (b, t, n)
        norm, gates = self.norm2, (self.token_gate(pooled), self.bank_gate(bounded))  # (b, t or 1, 2n), (b, t, 2n)
        return released_close(z, u, norm.weight, norm.bias, norm.eps, *gates, self.input_bias, self.forget_bias, rows)
