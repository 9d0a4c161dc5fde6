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

    Returns logits (b, v), float32 or wider, and the longer windows. Raises ValueError as LM2.extend does, for cell released, for windows whose rows do not
    wait (of models/decode.py), and for no windows.
    """
    if not states or any(not isinstance(state.inside, GatedInside) or state.inside.writes is None for state in states):
        raise ValueError("only windows of cell gated are stepped together, whose rows wait, and one at least")
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
    """What memory j adds to the attention output (b, 1, d) of the residual stream x (b, 1, d); what its new rows are made of is kept. looks: filled by the memory that
    holds the topics."""
    u = memory.norm(x)  # (b, 1, d)
    if memory.topics is not None:
        for w, state in enumerate(states):
            looks[w] = model.topic_looks(memory.topics, 1, state, state.length)  # (1, 1, n)
    insides = [cast(GatedInside, state.inside) for state in states]
    add, read = torch.zeros_like(x), torch.zeros_like(u)  # (b, 1, d) each; a bank of zeros adds exactly nothing
    heard = [w for w, inside in enumerate(insides) if inside.reads[j] is not None]
    if heard:
        q, found = memory.asked(u, x.dtype), []  # (b, h, 1, e)
        for w in heard:
            gained, topics = looks[w], model.topics  # (1, 1, n)
            if gained is not None and topics is not None:
                gained = topics.gain[j] * gained
            found.append(look(q[w : w + 1], cast(tuple[Tensor, Tensor], insides[w].reads[j]), gained))  # (1, h, 1, e)
        add[heard], read[heard] = memory.answered(u[heard], torch.cat(found))
    writes = torch.cat((u, read), dim=-1)  # (b, 1, 2d)
    for w, state in enumerate(states):
        model.write_rows(j, writes[w : w + 1], state, state.length)
    return add
