"""One token of each of several windows in one pass: what conversations that are answered at the same time share is the weights.

Products with weights are computed for all together; what is a window's own (keys and values, the memory's bank, its rows) window by window, on the buffers it
has. So nothing is copied or padded, windows come and go between two passes, and each stands at a position of its own. What it computes for each is LM2.extend
with one token (lm2.py is the reference). Cell gated. Knows no session.
Axes: b windows, h heads, k key/value heads, e head width, d hidden, n rows, v vocabulary.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from .llama import attend, wide
from .lm2 import LM2, GatedInside, WindowState, kept
from .memory import GatedMemory, look

Tables = tuple[Tensor, Tensor]


def step(model: LM2, ids: Tensor, states: Sequence[WindowState], tables: Tables) -> tuple[Tensor, list[WindowState]]:
    """Feed ids (b,) int64, one after each window's `length` positions; each window is of one sequence. tables: of as many positions as the longest has.

    Returns logits (b, v), float32 or wider, and the longer windows. Raises ValueError as LM2.extend does, for cell released, and for no windows.
    """
    if not states or any(not isinstance(state.inside, GatedInside) for state in states):
        raise ValueError("only windows of cell gated are stepped together, and one at least")
    for state in states:
        model.check_room(state, 1)
    at = torch.tensor([state.length for state in states], device=model.device)  # (b,)
    cos, sin = (table[at][:, None, None] for table in tables)  # (b, 1, 1, e)
    x = model.embed_tokens(ids[:, None])  # (b, 1, d)
    looks: list[Tensor | None] = [None] * len(states)
    for i, block in enumerate(model.blocks):
        q, k, v = block.self_attn.turned(block.input_layernorm(x).to(x.dtype), cos, sin)  # (b, h, 1, e), (b, k, 1, e) twice
        seen = []
        for w, state in enumerate(states):
            keys, values = kept(state.keys[i], state.values[i], k[w : w + 1], v[w : w + 1], state.length, state.length + 1)  # (1, k, s, e) each
            seen.append(attend(q[w : w + 1], keys, values, window=block.self_attn.window))  # (1, h, 1, e)
        a = block.self_attn.joined(torch.cat(seen))  # (b, 1, d)
        if isinstance(block.memory, GatedMemory):
            a = a + _remembered(model, block.memory, model.bank_of[i], x, states, looks)
        x = block.finish(x, a)
    logits = model.lm_head(model.norm(x).to(x.dtype))[:, 0]  # (b, v)
    return logits.to(wide(model.dtype)), [state._replace(length=state.length + 1) for state in states]


def _remembered(model: LM2, memory: GatedMemory, j: int, x: Tensor, states: Sequence[WindowState], looks: list[Tensor | None]) -> Tensor:
    """What memory j adds to the attention output (b, 1, d) of the residual stream x (b, 1, d); its new rows are written. looks: filled by the memory that
    holds the topics."""
    u, token = memory.said(x)  # (b, 1, d), (b, 1, 2d)
    if memory.topics is not None:
        told = memory.told(token)  # (b, 1, 1)
        for w, state in enumerate(states):
            looks[w] = model.topic_looks(memory.topics, told[w : w + 1], state, state.length)  # (1, 1, n)
    old = torch.cat([model.old_rows(j, 1, state, state.length) for state in states])  # (b, 1, d)
    insides = [cast(GatedInside, state.inside) for state in states]
    add, rows = torch.zeros_like(x), torch.empty_like(old)  # (b, 1, d) each
    heard = [w for w, inside in enumerate(insides) if inside.reads[j] is not None]
    if heard:
        q, found = memory.asked(u, x.dtype), []  # (b, h, 1, e)
        for w in heard:
            gained, topics = looks[w], model.topics  # (1, 1, n)
            if gained is not None and topics is not None:
                gained = topics.gain[j] * gained
            found.append(look(q[w : w + 1], cast(tuple[Tensor, Tensor], insides[w].reads[j]), gained))  # (1, h, 1, e)
        add[heard], rows[heard] = memory.written(u[heard], token[heard], torch.cat(found), old[heard])
    empty = [w for w in range(len(states)) if w not in heard]
    if empty:  # a bank of zeros adds exactly nothing
        rows[empty] = memory(x[empty], None, old[empty], said=(u[empty], token[empty]))[1]
    for w, state in enumerate(states):
        model.write_rows(j, rows[w : w + 1], state, state.length)
    return add
