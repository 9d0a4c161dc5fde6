"""Differentiable passes over questions that stand behind a shared window, reading banks as they are. Cell gated, with a projection of what is read.

Knows layers and hidden states. Same numbers as a session that read the window and asks (a test holds them together).
Axes: q questions, t positions of a question, s positions of the window, n rows, d hidden, f features of topics, h memory heads, k key/value heads,
e head width.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..lm2 import LM2
from ..memory import GatedMemory
from ..topics import Topics

KV = tuple[Tensor, Tensor]


class Reads(NamedTuple):
    """What is read of the banks: of each memory K and V (1, h, n, e), None for an empty bank; around (1, n, d): what is near each row, with topics."""

    memories: Sequence[KV | None]
    around: Tensor | None = None


class Seen(NamedTuple):
    """What a memory layer met: x, the residual stream before it, and what it read of the bank after the projection, both (q, t, d)."""

    x: Tensor
    read: Tensor


def memories(model: LM2) -> list[GatedMemory]:
    """The memories, in the order of their layers."""
    return [cast(GatedMemory, model.blocks[i].memory) for i in model.config.memory.layers]


def unread(model: LM2) -> Reads:
    """Of empty banks."""
    return Reads([None] * len(model.config.memory.layers))


def window(
    model: LM2, ids: Tensor, reads: Reads, tables: tuple[Tensor, Tensor], end: int | None = None, met: list[Tensor] | None = None
) -> tuple[list[KV], list[Seen]]:
    """Keys and values (1, k, s, e) of each layer for a window's ids (s,) that begins at position 0, and what its memories met.

    end: the first layer that is not run; None runs all. met: as `layers` has it.
    """
    keys: list[KV] = []
    seen: list[Seen] = []
    count = len(model.layers) if end is None else end
    x = model.embed_tokens(ids[None])  # (1, s, d)
    if not len(ids):
        c = model.config
        if met is not None:
            met += [x.new_zeros(1, 0, len(c.memory.topics) * c.num_key_value_heads * c.head_dim)] * 2  # (1, 0, f)
        none = x.new_zeros(1, c.num_key_value_heads, 0, c.head_dim)  # (1, k, 0, e)
        return [(none, none)] * count, [Seen(x, x)] * sum(i < count for i in c.memory.layers)
    with torch.no_grad():
        layers(model, x, tables, reads, 0, count, None, keys, seen, met)
    return keys, seen


def layers(
    model: LM2,
    x: Tensor,
    tables: tuple[Tensor, Tensor],
    reads: Reads,
    begin: int,
    end: int,
    before: Sequence[KV] | None = None,
    keys: list[KV] | None = None,
    seen: list[Seen] | None = None,
    met: list[Tensor] | None = None,
    lately: Tensor | None = None,
    recompute: bool = False,
) -> Tensor:
    """Hidden states (q, t, d) after layers begin to end - 1, of x (q, t, d) at the positions after the window `before`, whose keys and values are
    given for every layer. keys, seen: collect this call's; met: the features of this call's tokens, then their means lately, (q, t, f) each.
    lately: those means, where the topics' layers lie below `begin`. recompute: keep no activations of MLPs, compute them again when differentiating."""
    q, t, _ = x.shape
    s = before[begin][0].shape[2] if before else 0
    cos, sin = (table[s : s + t] for table in tables)
    topics, looks = model.topics, None
    values: list[Tensor] = []
    for i in range(begin, end):
        block = model.blocks[i]
        kept = values if topics is not None and i in topics.layers else None
        a = block.self_attn(block.input_layernorm(x).to(x.dtype), cos, sin, _cache(before[i] if before else None, q, keys, kept))  # (q, t, d)
        if topics is not None and kept is not None and i == topics.layers[-1]:
            features = topics.features(values)  # (q, s + t, f)
            lately = topics.lately(features, t)  # (q, t, f)
            if met is not None:
                met += [features[:, -t:], lately]
        if topics is not None and i == model.config.memory.layers[0] and reads.around is not None:
            assert lately is not None
            looks = topics.looks(lately, reads.around)  # (q, t, n)
        memory = cast(GatedMemory | None, block.memory)
        if memory is not None:
            j = model.bank_of[i]
            read = reads.memories[j]
            got = torch.zeros_like(x) if read is None else _read(memory, x, read, gained(topics, looks, j))  # (q, t, d)
            if seen is not None:
                seen.append(Seen(x, got))
            if read is not None:
                gate = memory.opened(memory.read_proj(got), memory.norm(x))[..., : x.shape[-1]]  # (q, t, d) of the output gate
                a = a + torch.sigmoid(gate) * got
        again = recompute and torch.is_grad_enabled()
        x = checkpoint(block.finish, x, a, use_reentrant=False) if again else block.finish(x, a)
    return x


def gained(topics: Topics | None, looks: Tensor | None, j: int) -> Tensor | None:
    """What topics add to the logits of memory j."""
    return None if topics is None or looks is None else topics.gain[j] * looks


def _read(memory: GatedMemory, x: Tensor, read: KV, looks: Tensor | None) -> Tensor:
    q, t, _ = x.shape
    k, v = read  # (1, h, n, e) each
    query = memory.q_proj(memory.norm(x)).view(q * t, memory.heads, memory.width).transpose(0, 1)[None]  # (1, h, q t, e)
    mask = None if looks is None else looks.reshape(1, 1, q * t, -1).to(query.dtype)  # (1, 1, q t, n)
    got = torch.nn.functional.scaled_dot_product_attention(query, k, v, attn_mask=mask)[0]  # (h, q t, e)
    assert memory.o_proj is not None
    out: Tensor = memory.o_proj(got.transpose(0, 1).reshape(q, t, -1))
    return out  # (q, t, d)


def attention(memory: GatedMemory, x: Tensor, keys: Tensor, looks: Tensor | None = None) -> Tensor:
    """Logits (p, h, n) of what states x (p, d) look at in a bank with keys (1, h, n, e); looks (p, n): what topics add."""
    query = memory.q_proj(memory.norm(x)).view(len(x), memory.heads, memory.width)  # (p, h, e)
    logits = torch.einsum("phe,hne->phn", query, keys[0]) * memory.width**-0.5
    return logits if looks is None else logits + looks[:, None]


def _cache(before: KV | None, q: int, keys: list[KV] | None, values: list[Tensor] | None) -> Callable[[Tensor, Tensor], KV]:
    def cache(k: Tensor, v: Tensor) -> KV:
        if keys is not None:
            keys.append((k.detach(), v.detach()))
        if before is not None:
            k, v = torch.cat((before[0].expand(q, -1, -1, -1), k), dim=2), torch.cat((before[1].expand(q, -1, -1, -1), v), dim=2)
        if values is not None:
            values.append(v)
        return k, v

    return cache
