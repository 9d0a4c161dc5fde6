"""The two memory cells in MLX, as one layer of them. Knows one layer and one call; chunks and sessions are others' business.

Axes: b batch, t positions of a call, s positions of the chunk so far, n rows of the bank, d hidden, h memory heads, e memory head width.
Source: arXiv 2502.06049 equations 1-6; `gated` is their causal form, `released` what the authors' checkpoints compute.
"""

from dataclasses import dataclass

import mlx.core as mx

from .linear import Dense, Linear
from .llama import Cache, RMSNorm, attention
from .topics import Topics


def gated_memory_update(i: mx.array, f: mx.array, z: mx.array, old: mx.array) -> mx.array:
    """new = sigmoid(i) * tanh(z) + sigmoid(f) * old (LM2 equation 6). All (b, t, d); elementwise."""
    return mx.sigmoid(i) * mx.tanh(z) + mx.sigmoid(f) * old  # (b, t, d)


@dataclass
class Words:
    """What a row's value is made of besides the row, `values: topics`: its row in the topics' bank, normed."""

    norm: RMSNorm
    v: Linear


@dataclass
class GatedMemory:
    """Cell `gated`: reads the layer's own bank as it stood at the chunk's start; row t is rewritten from what was seen and read at t.

    On a CPU, V has a last column of ones: what is read is divided by the weights' sum as the product adds it up. MLX's softmax adds up n
    numbers one by one there, and a bank's unwritten rows, all alike, push the sum off by 2e-5 (a bank's NMSE was 26 times the reference's).

    What is read is needed at once, what is written only at the chunk's end: `step` runs per call, `rewrite` once over all rows.
    """

    heads: int
    width: int
    norm: RMSNorm
    bank_norm: RMSNorm
    q: Linear
    k: Linear
    before: Linear | None  # what a key has of the row before its own
    v: Linear
    o: Linear | None
    output_gate: Dense
    input_gate: Dense
    forget_gate: Dense
    content: Dense
    scale: mx.array | None  # (d,) float32
    both: bool  # a row is made of what was read too, not of the token alone
    cpu: bool
    open_gate: Dense | None = None  # what the token says of the output gate, one number for all channels
    topics: Topics | None = None  # of all memories, with the first of them
    words: Words | None = None  # what a value has of its row in the topics' bank

    def keys_values(self, rows: mx.array, before: mx.array | None = None, told: mx.array | None = None) -> tuple[mx.array, mx.array]:
        """K (b, h, n, e) and V (b, h, n, e, or e + 1 on a CPU) of rows (b, n, d): computed once per chunk. Zero rows give zeros.

        before (b, n, d): the row before each in the ring; by default `rows` is a whole bank. told (b, n, d): their rows in the topics' bank.
        """
        b, n, _ = rows.shape
        r = self.bank_norm(rows).astype(self.k.dtype)  # (b, n, d)
        k, v = self.k(r), self.v(r)  # (b, n, h e)
        if self.before is not None:
            k = k + self.before(mx.roll(r, 1, 1) if before is None else self.bank_norm(before).astype(self.k.dtype))
        if self.words is not None:
            assert told is not None
            v = v + self.words.v(self.words.norm(told).astype(self.words.v.dtype))
        k, v = (x.reshape(b, n, self.heads, self.width).swapaxes(1, 2) for x in (k, v))  # (b, h, n, e)
        if self.cpu:
            v = mx.concatenate([v, mx.ones((*v.shape[:-1], 1), v.dtype)], axis=-1)  # (b, h, n, e + 1)
        return mx.contiguous(k), mx.contiguous(v)

    def seen(self, x: mx.array) -> mx.array:
        """The memory's own view of its layer's input: x (b, t, d) -> float32 (b, t, d)."""
        return self.norm(x)

    def step(self, x: mx.array, k: mx.array, v: mx.array, looks: mx.array | None = None) -> tuple[mx.array, mx.array, mx.array]:
        """x (b, t, d) residual stream; k, v of the bank; looks (b, t, n): what topics add to the attention's logits, this memory's gain in it.

        Returns `seen`, what joins the attention output, and what was read: float32 (b, t, d).
        """
        b, t, _ = x.shape
        u = self.seen(x)  # (b, t, d)
        q = self.q(u.astype(self.q.dtype)).reshape(b, t, self.heads, self.width).swapaxes(1, 2)  # (b, h, t, e)
        e = attention(q, k, v, self.cpu, None if looks is None else looks[:, None])  # (b, h, t, e or e + 1)
        if self.cpu:
            e = e[..., :-1] / e[..., -1:]  # (b, h, t, e)
        e = e.swapaxes(1, 2).reshape(b, t, -1)  # (b, t, h e)
        if self.o is not None:
            e = self.o(e)  # (b, t, d)
        e = e.astype(mx.float32)
        opened = self.output_gate(e)  # (b, t, d)
        if self.open_gate is not None:
            opened = opened + self.open_gate(u)  # (b, t, d)
        add = mx.sigmoid(opened) * e  # (b, t, d)
        return u, (add if self.scale is None else self.scale * add), e

    def rewrite(self, u: mx.array, read: mx.array | None, old: mx.array) -> tuple[mx.array, mx.array]:
        """New rows (b, t, d) from u and read (b, t, d), None where the bank was all zeros, and the old rows (b, t, d).

        With them, for topics, how far each token is written: the mean (b, t, 1) of its input gate over the channels. All float32.
        """
        i, content = self.input_gate(u), self.content(u)  # (b, t, d) each
        told = mx.sigmoid(i).mean(axis=-1, keepdims=True)  # (b, t, 1)
        if read is None:
            assert self.forget_gate.bias is not None
            return gated_memory_update(i, self.forget_gate.bias, content, old), told
        return gated_memory_update(i, self.forget_gate(read), read + content if self.both else content, old), told


@dataclass
class ReleasedMemory:
    """Cell `released`: one bank passes through all layers; row t sees rows <= t and is rewritten in each layer. T = N = D."""

    heads: int
    width: int
    query: Linear
    key: Linear
    value: Linear
    mlp: Dense
    norm1: tuple[mx.array, mx.array]  # weight, bias (n,) float32
    norm2: tuple[mx.array, mx.array]
    token_scale: mx.array  # (d,) float32
    token_gate: Dense
    bank_gate: Dense
    input_bias: mx.array  # () float32
    forget_bias: mx.array
    cpu: bool

    def lifted(self, x: mx.array) -> mx.array:
        """What the input gate averages over tokens: x (b, t, d) -> float32 (b, t, d)."""
        return mx.maximum(self.token_scale * x.astype(mx.float32), 0.0)

    def rewrite(self, x: mx.array, rows: mx.array, cache: Cache, pooled: mx.array) -> mx.array:
        """x (b, t, d) attention output; rows (b, t, n) as the layer below left them; pooled (b, 1 or t, d) the mean of `lifted`.

        `cache` keeps keys and values of rows <= t. Returns the rows as this layer leaves them, float32; they also join the attention output.
        """
        b, t, _ = x.shape
        heads = (b, t, self.heads, self.width)
        r = rows.astype(self.key.dtype)
        q = self.query(x).reshape(heads).swapaxes(1, 2)  # (b, h, t, e)
        k, v = cache(self.key(r).reshape(heads).swapaxes(1, 2), self.value(r).reshape(heads).swapaxes(1, 2))  # (b, h, s, e)
        a = attention(q, k, v, self.cpu, "causal")  # (b, h, t, e)
        a = a.swapaxes(1, 2).reshape(b, t, -1).astype(mx.float32)  # (b, t, n)
        z = mx.fast.layer_norm(rows + a, *self.norm1, 1e-5)  # (b, t, n)
        u = mx.maximum(self.mlp(mx.maximum(self.mlp(z), 0.0)), 0.0)  # (b, t, n)
        z = mx.fast.layer_norm(z + u, *self.norm2, 1e-5)  # (b, t, n)
        gates = self.token_gate(pooled) + self.bank_gate(mx.tanh(rows))  # (b, t, 2n)
        i, f = mx.split(gates, 2, axis=-1)  # (b, t, n) each
        return gated_memory_update(i + self.input_bias, f + self.forget_bias, z, rows)  # (b, t, n)
