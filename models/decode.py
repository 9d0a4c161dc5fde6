"""One token of each sequence on buffers that never move: the step that a CUDA graph captures once and replays. Runs eagerly on any device as well.

What it computes is LM2.extend with one token (lm2.py is the reference). Positions are a tensor, so one captured step serves all of them, and every sequence
of a batch may stand at a position of its own. Not for cell released with chunk pooling, which has no step.
Axes: b batch, l banks, L layers, W positions of a window, T positions between two folds at most, n rows, d hidden, h heads, k key/value heads,
e head width, v vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, cast

import torch
from torch import Tensor

from .kernels.attention import decode_attention
from .kernels.gated import gated_memory_step
from .kernels.norm import add_rms_norm, rms_norm
from .kernels.rotary import rotate_store
from .kernels.stream import released_pool, store_heads
from .llama import RMSNorm, table, wide
from .lm2 import LM2, ExactInside, GatedInside, StreamInside, WindowState, begun
from .memory import GatedMemory, ReleasedMemory
from .opening import Opening
from .topics import Topics


class Buffers(NamedTuple):
    """A window of b sequences. inputs (3b,) int64: the tokens to feed, their positions, and which of `rows` each writes. logits (b, v): what follows.

    old (l, b, T + 1, d): the bank's rows that tokens since the last fold rewrite, as they were; rows the same, as they become; the last place is
    where a carried token's row goes, unread. keys, values (L, b, k, W, e).
    read_keys, read_values: cell gated, of each memory's bank (l, b, h, n, e); cell released, of the chunk's rows in each layer (L, b, h, T, e).
    sums: cell released, running sums for the pool, (L, b, T + 1, d), at 0 nothing; cell gated (0,).
    around: what is near each row of the topics' bank, (b, n, d); without topics (0,).
    """

    inputs: Tensor
    logits: Tensor
    old: Tensor
    rows: Tensor
    keys: Tensor
    values: Tensor
    read_keys: Tensor
    read_values: Tensor
    sums: Tensor
    around: Tensor

    @property
    def batch(self) -> int:
        return self.keys.shape[1]


def steps(model: LM2) -> bool:
    """Whether the model can be decoded one token at a time."""
    return model.config.memory.cell == "gated" or model.config.memory.gate_pool == "causal"


def new_buffers(model: LM2, batch: int, window: int | None = None) -> Buffers:
    """Zeroed buffers for `batch` sequences of up to `window` positions (default: a chunk). Raises ValueError for a cell without a step."""
    if not steps(model):
        raise ValueError("cell released with gate_pool 'chunk' re-runs its chunk for every token: use LM2.extend, or gate_pool 'causal'")
    c, m, kind, exact = model.config, model.config.memory, model.dtype, wide(model.dtype)

    def zeros(*shape: int, dtype: torch.dtype = kind) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=model.device)

    layers, chunk, d = c.num_hidden_layers, m.chunk, c.hidden_size
    kv = (layers, batch, c.num_key_value_heads, window or chunk, c.head_dim)
    rows = (m.banks, batch, chunk + 1, d)
    gated = m.cell == "gated"
    reads = (len(m.layers) if gated else layers, batch, m.heads, m.slots, m.head_dim)
    sums = zeros(0, dtype=exact) if gated else zeros(layers, batch, chunk + 1, d, dtype=exact)
    return Buffers(
        zeros(3 * batch, dtype=torch.long), zeros(batch, c.vocab_size, dtype=exact), zeros(*rows, dtype=exact), zeros(*rows, dtype=exact),
        zeros(*kv), zeros(*kv), zeros(*reads), zeros(*reads), sums, zeros(*((batch, m.slots, d) if m.topics else (0,)), dtype=exact),
    )  # fmt: skip


def begin(model: LM2, buffers: Buffers, bank: Tensor, written: int, carried: int = 0, opening: Opening | None = None) -> WindowState:
    """Start a window that reads `bank` (l, b, n, d) in these buffers, whatever was in them. Its tensors are the buffers': `extend` may fill them too.

    written, opening: see LM2.start; carried counts the positions of the opening.
    """
    m = model.config.memory
    for buffer in (
        buffers.keys,
        buffers.values,
        buffers.rows,
    ):  # positions not reached are masked, not skipped, in plain attention: no NaN may lie there
        buffer.zero_()
    _offer(model, buffers, bank, written)
    rows = buffers.rows[:, :, : m.chunk]  # (l, b, T, d)
    inside: GatedInside | StreamInside
    if m.cell == "gated":
        for layer, j in model.bank_of.items():
            k, v = cast(GatedMemory, model.blocks[layer].memory).keys_values(bank[j], model.dtype, told=model.told(bank))  # (b, h, n, e) each
            buffers.read_keys[j].copy_(k)
            buffers.read_values[j].copy_(v)
        topics = model.topics
        if topics is not None:
            buffers.around.copy_(topics.around(bank[-1]))
        inside = GatedInside(tuple(zip(buffers.read_keys, buffers.read_values, strict=True)), rows, None if topics is None else buffers.around)
    else:
        buffers.read_keys.zero_()
        buffers.read_values.zero_()
        inside = StreamInside(buffers.read_keys, buffers.read_values, buffers.sums[:, :, 1:], rows)
    return begun(WindowState(bank, written, 0, buffers.keys, buffers.values, inside, carried, carried), opening)


def fold(model: LM2, buffers: Buffers, state: WindowState) -> WindowState:
    """LM2.fold in these buffers: what is read of the bank is written in place, so the state passed in is of no use afterwards."""
    count = state.length - state.folded
    if count <= 0:
        return state
    bank, written = model.commit(state)
    places = model.anew(state.written, count)  # (c,)
    for layer, j in model.bank_of.items():
        k, v = cast(GatedMemory, model.blocks[layer].memory).keys_values(bank[j], model.dtype, places, model.told(bank))  # (b, h, c, e) each
        buffers.read_keys[j].index_copy_(2, places, k)
        buffers.read_values[j].index_copy_(2, places, v)
    if model.topics is not None:
        near = model.near(state.written, count)  # (c,)
        buffers.around.index_copy_(1, near, model.topics.around(bank[-1], near))
    _offer(model, buffers, bank, written)
    return state._replace(bank=bank, written=written, folded=state.length)


def place(state: WindowState, chunk: int) -> int:
    """Which row of the buffers the next token writes: the last one, which nobody reads, for a carried token. chunk: T."""
    return state.length - state.folded if state.length >= state.folded else chunk


def _offer(model: LM2, buffers: Buffers, bank: Tensor, written: int) -> None:
    """Lay out the rows that the tokens up to the next fold rewrite, as they are."""
    chunk = model.config.memory.chunk
    buffers.old[:, :, :chunk] = bank[:, :, model.places(written, chunk)]
    buffers.old[:, :, chunk] = 0


def adopt(model: LM2, buffers: Buffers, sequence: int, state: WindowState) -> None:
    """Copy a window of one sequence, at any length, into place `sequence` of the buffers: separate sessions are then stepped together."""
    assert not isinstance(state.inside, ExactInside)
    s, at, chunk = slice(0, state.length), sequence, model.config.memory.chunk
    new = slice(0, max(0, state.length - state.folded))
    buffers.old[:, at, :chunk] = state.bank[:, 0, model.places(state.written, chunk)]
    buffers.old[:, at, chunk] = 0
    buffers.rows[:, at, new] = model.rows(state)[:, 0]
    buffers.keys[:, at, :, s] = state.keys[:, 0, :, s]
    buffers.values[:, at, :, s] = state.values[:, 0, :, s]
    if isinstance(state.inside, GatedInside):
        for j, kv in enumerate(state.inside.reads):
            buffers.read_keys[j, at] = 0 if kv is None else kv[0][0]
            buffers.read_values[j, at] = 0 if kv is None else kv[1][0]
        if len(buffers.around):
            buffers.around[at] = 0 if state.inside.around is None else state.inside.around[0]
    else:
        buffers.read_keys[:, at, :, s] = state.inside.keys[:, 0, :, s]
        buffers.read_values[:, at, :, s] = state.inside.values[:, 0, :, s]
        buffers.sums[:, at, 1 : state.length + 1] = state.inside.sums[:, 0, s]


def step(model: LM2, buffers: Buffers, tables: tuple[Tensor, Tensor], beside: "torch.cuda.Stream | None" = None) -> None:
    """Feed inputs[:b] at positions inputs[b:2b]: fills logits, and everything else there. No synchronisation with the host, no new shapes.

    inputs[2b:]: the row of `rows` each token writes (`place`).
    `beside`: a second stream, on which a gated memory is read while the main one computes self-attention (neither needs the other).
    """
    b = buffers.batch
    ids, position, row = buffers.inputs[:b], buffers.inputs[b : 2 * b], buffers.inputs[2 * b :]  # (b,) each
    length = position + 1  # (b,)
    x = model.embed_tokens(ids)  # (b, d)
    blocks = model.blocks
    normed = _joined(x, None, blocks[0].input_layernorm)[1]  # (b, d)
    ways = _ways(model, tables)
    rows = buffers.old[0, torch.arange(b, device=x.device), position] if len(buffers.sums) else None  # (b, d)
    looks = None
    for i, block in enumerate(blocks):
        found = None
        if isinstance(block.memory, GatedMemory):
            with _on(beside):
                u = rms_norm(x, block.memory.norm.weight, block.memory.norm.eps, block.memory.norm.weight.dtype)  # (b, d)
                token = block.memory.token_proj(u)  # (b, 2d)
                if block.memory.topics is not None:
                    looks = _looks(block.memory.topics, block.memory.told(token), buffers, position, row)  # (l, b, n)
                found = token, *_read(block.memory, buffers, model.bank_of[i], u, looks)  # (b, 2d), (b, 2d), (b, d)
        q = rotate_store(block.self_attn.project(normed), *ways[block.self_attn.turns], position, buffers.keys[i], buffers.values[i])  # (b, h, e)
        a = block.self_attn.output(decode_attention(q, buffers.keys[i], buffers.values[i], length, window=block.self_attn.window).view(b, -1))  # (b, d)
        if isinstance(block.memory, GatedMemory):
            if beside is not None:
                torch.cuda.current_stream().wait_stream(beside)
            memory, j, (token, gates, read) = block.memory, model.bank_of[i], cast(tuple[Tensor, Tensor, Tensor], found)
            a = gated_memory_step(
                token, gates, read, buffers.old[j], memory.input_bias, memory.scale, a, row, buffers.rows[j], memory.both
            )  # (b, d)
        elif isinstance(block.memory, ReleasedMemory):
            rows = _streamed(block.memory, buffers, i, a, cast(Tensor, rows), position, length)  # (b, d)
            a = a + rows.to(a.dtype)
        x, normed = _joined(x, a, block.post_attention_layernorm)  # (b, d) each
        norm = model.norm if i + 1 == len(blocks) else blocks[i + 1].input_layernorm
        x, normed = _joined(x, block.mlp(normed), norm)  # (b, d) each
    if rows is not None:
        buffers.rows[0, torch.arange(b, device=x.device), position] = rows
    buffers.logits.copy_(model.lm_head(normed))


def _ways(model: LM2, tables: tuple[Tensor, Tensor]) -> dict[int | None, tuple[Tensor, Tensor]]:
    """Tables (W, e), dense, of each way in which layers turn queries and keys; None: not at all."""
    c = model.config
    cos, sin = tables
    ways: dict[int | None, tuple[Tensor, Tensor]] = {
        i: (table(cos, i, c.head_dim).contiguous(), table(sin, i, c.head_dim).contiguous()) for i in range(len(c.ropes))
    }
    if c.backbone.no_rope:
        ways[None] = torch.ones_like(ways[0][0]), torch.zeros_like(ways[0][1])
    return ways


def _joined(x: Tensor, a: Tensor | None, norm: torch.nn.Module) -> tuple[Tensor, Tensor]:
    """x + a (b, d), and what reads it: its norm, or itself where a layer has none there."""
    if not isinstance(norm, RMSNorm):
        x = x if a is None else x + a
        return x, x
    if a is None:
        return x, rms_norm(x, norm.weight, norm.eps, x.dtype)
    return add_rms_norm(x, a, norm.weight, norm.eps, x.dtype)


@contextmanager
def _on(beside: "torch.cuda.Stream | None") -> Iterator[None]:
    """Work inside goes to the stream `beside`, after what the current one has been given; without one nothing changes.

    What is allocated there is used up before the next visit, which waits for the main stream, or used on later visits alone (what topics say):
    no tensor needs `record_stream`.
    """
    if beside is None:
        yield
        return
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        yield


def _looks(topics: Topics, told: Tensor, buffers: Buffers, position: Tensor, row: Tensor) -> Tensor:
    """What topics add to the logits of each memory (l, b, n); their rows are written as far as `told` (b, 1) says. The layers they are made of have kept these positions already."""
    features, lately = topics.one([buffers.values[i] for i in topics.layers], position)  # (b, f) each
    at = torch.arange(len(position), device=position.device), row  # (b,) each
    buffers.rows[-1][at] = topics.rows(features, told, buffers.old[-1][at])
    looks = topics.looks(lately[:, None], buffers.around)[:, 0]  # (b, n)
    return topics.gain[:, None, None] * looks  # (l, b, n)


def _read(memory: GatedMemory, buffers: Buffers, j: int, u: Tensor, looks: Tensor | None) -> tuple[Tensor, Tensor]:
    """What bank j says to tokens of normed states u (b, d): output and forget gates (b, 2d), what was read (b, d). looks (l, b, n)."""
    q = memory.q_proj(u.to(buffers.keys.dtype)).view(len(u), memory.heads, memory.width)  # (b, h, e)
    read = decode_attention(q, buffers.read_keys[j], buffers.read_values[j], looks=None if looks is None else looks[j]).view(len(u), -1)  # (b, h e)
    if memory.o_proj is not None:
        read = memory.o_proj(read)  # (b, d)
    return memory.opened(memory.read_proj(read.to(u.dtype)), u), read


def _streamed(memory: ReleasedMemory, buffers: Buffers, i: int, a: Tensor, rows: Tensor, position: Tensor, length: Tensor) -> Tensor:
    """The rows (b, d) of these positions as layer i leaves them."""
    b = len(a)
    pooled = released_pool(a, memory.token_gate.scale, position, buffers.sums[i])  # (b, d)
    r = rows.to(a.dtype)
    store_heads(memory.key_proj(r), memory.value_proj(r), position, buffers.read_keys[i], buffers.read_values[i])
    q = memory.query_proj(a).view(b, memory.heads, memory.width)  # (b, h, e)
    read = decode_attention(q, buffers.read_keys[i], buffers.read_values[i], length).view(b, 1, -1)  # (b, 1, n)
    return memory.rewrite(read, rows[:, None], pooled[:, None])[:, 0]  # (b, d)
