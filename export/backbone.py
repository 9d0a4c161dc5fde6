"""The backbone in NumPy on a few drawn tokens: what its matrices meet, for those who decide how to round. Knows no memory, no graph.

Tokens are drawn, not read: no text is needed, and nothing that a model is judged on takes part. Axes: t positions, d hidden, h query heads,
k key/value heads, e head width, f of the MLP.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from ..models.config import LM2Config, RopeConfig
from .attention import rope_tables

TOKENS, SEED = 64, 0


class Tensors(Protocol):
    """A model's tensors by name, float32."""

    def __contains__(self, name: str) -> bool: ...

    def __getitem__(self, name: str) -> np.ndarray: ...


def normed_inputs(config: LM2Config, weights: Tensors) -> Iterator[np.ndarray]:
    """What q, k, v and what gate, up of each layer are fed, (t, d) float32 each, for one chunk of drawn tokens. For norms that stand before them."""
    count = min(TOKENS, config.memory.chunk)
    ids = np.random.default_rng(SEED).integers(0, config.vocab_size, count)
    x = weights["model.embed_tokens.weight"][ids] * np.float32(config.backbone.embedding_scale)  # (t, d)
    turn: dict[int | None, tuple[np.ndarray, np.ndarray]] = {j: rotation(rope, config.head_dim, count) for j, rope in enumerate(config.ropes)}
    turn[None] = np.ones_like(turn[0][0]), np.zeros_like(turn[0][1])  # (t, e) each
    for i in range(config.num_hidden_layers):
        p = f"model.layers.{i}."
        n = rms(x, weights[f"{p}input_layernorm.weight"], config.rms_norm_eps)
        yield n
        q, k, v = (linear(weights, f"{p}self_attn.{which}_proj", n) for which in "qkv")
        if config.backbone.qk_norm != "none":
            q, k = (normed(config, x, weights[f"{p}self_attn.{which}_norm.weight"]) for x, which in ((q, "q"), (k, "k")))
        a = attention(config, q, k, v, turn[config.backbone.turns(i)], config.backbone.window(i))  # (t, h e)
        x = x + linear(weights, f"{p}self_attn.o_proj", a)
        n = rms(x, weights[f"{p}post_attention_layernorm.weight"], config.rms_norm_eps)
        yield n
        gate, up = (linear(weights, f"{p}mlp.{name}_proj", n) for name in ("gate", "up"))  # (t, f)
        x = x + linear(weights, f"{p}mlp.down_proj", active(config, gate) * up)


def normed(config: LM2Config, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """x (t, heads e), each head normed, or all as a whole."""
    return rms(x.reshape(-1, weight.size), weight, config.rms_norm_eps).reshape(x.shape)


def active(config: LM2Config, gate: np.ndarray) -> np.ndarray:
    """The activation of the MLP's gate."""
    if config.backbone.activation == "silu":
        return gate / (1 + np.exp(-np.maximum(gate, -80)))
    return 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))


def rms(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """RMSNorm over the last axis."""
    normed: np.ndarray = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + eps) * weight
    return normed


def linear(weights: Tensors, name: str, x: np.ndarray) -> np.ndarray:
    """x (t, i) times matrix `name`, plus its bias if it has one."""
    y: np.ndarray = x @ weights[f"{name}.weight"].T
    return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y


def rotation(rope: RopeConfig, head_dim: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines (t, e) of the rotary embedding, halves repeated."""
    cos, sin = rope_tables(rope, head_dim, count)
    return np.concatenate([cos, cos], -1), np.concatenate([sin, sin], -1)


def attention(config: LM2Config, q: np.ndarray, k: np.ndarray, v: np.ndarray, turn: tuple[np.ndarray, np.ndarray], window: int | None = None) -> np.ndarray:
    """Causal attention of q (t, h e) to k and v (t, k e), rotated here, to the last `window` positions: (t, h e)."""
    h, groups, e, t = config.num_attention_heads, config.num_key_value_heads, config.head_dim, len(q)

    def heads(x: np.ndarray, count: int) -> np.ndarray:
        return x.reshape(t, count, e).transpose(1, 0, 2)  # (heads, t, e)

    def turned(x: np.ndarray) -> np.ndarray:
        return x * turn[0] + np.concatenate([-x[..., e // 2 :], x[..., : e // 2]], -1) * turn[1]

    q, k, v = turned(heads(q, h)), turned(heads(k, groups)), heads(v, groups)
    scores = q @ np.repeat(k, h // groups, 0).transpose(0, 2, 1) / np.sqrt(np.float32(e))  # (h, t, t)
    seen = np.tri(t, dtype=bool)  # (t, t)
    if window is not None:
        seen &= ~np.tri(t, k=-window, dtype=bool)
    scores = np.where(seen, scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    out: np.ndarray = (p / p.sum(-1, keepdims=True)) @ np.repeat(v, h // groups, 0)
    return out.transpose(1, 0, 2).reshape(t, h * e)
