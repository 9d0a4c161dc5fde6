"""The LM2 model in MLX: blocks, chunks, and the state that goes in and comes out. Knows no files, no text and no sessions.

Axes: b batch, t positions of a call, s positions of the chunk so far, T positions of a chunk, n rows, d hidden, h heads, k key/value heads,
e head width, l banks, L layers, v vocabulary.

Everything here builds a lazy graph; `evaluate` runs it, once per call of the model.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from ..models.config import LM2Config
from .linear import Linear
from .llama import MLP, Attention, RMSNorm, attend, rope_tables
from .memory import GatedMemory, ReleasedMemory


@dataclass
class Block:
    """One decoder layer; `memory` is None where the layer has none."""

    input_norm: RMSNorm
    attention: Attention
    memory: GatedMemory | ReleasedMemory | None
    post_norm: RMSNorm
    mlp: MLP

    def project(self, x: mx.array, cos: mx.array, sin: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """Residual stream x (b, t, d) -> q (b, h, t, e), k and v (b, k, t, e)."""
        return self.attention.project(self.input_norm(x).astype(x.dtype), cos, sin)

    def finish(self, x: mx.array, a: mx.array, add: mx.array | None = None) -> mx.array:
        """Residual of the attention's heads a (b, h, t, e), of what the memory adds (b, t, d), then the MLP. (b, t, d)"""
        joined = self.attention.output(a)  # (b, t, d)
        return self.join(x, joined if add is None else joined + add.astype(joined.dtype))

    def join(self, x: mx.array, joined: mx.array) -> mx.array:
        """Residual of what the attention and the memory give together, then the MLP. (b, t, d)"""
        x = x + joined
        return x + self.mlp(self.post_norm(x).astype(x.dtype))


class Pieces(NamedTuple):
    """What of a block does not depend on how long the chunk is: compiled once for steps of one token."""

    project: Callable[..., tuple[mx.array, mx.array, mx.array]]
    finish: Callable[..., mx.array]
    read: Callable[..., tuple[mx.array, mx.array, mx.array]] | None

    def compiled(self) -> "Pieces":
        return Pieces(mx.compile(self.project), mx.compile(self.finish), None if self.read is None else mx.compile(self.read))


@dataclass
class Buffers:
    """What a chunk accumulates: arrays of constant size by name, filled up to the chunk's length.

    Shared by the states of one chunk and replaced as it grows: positions before a state's length never change, so an older state
    stays good for rewinding until something else is fed after it. Nobody else may hold the arrays, then MLX writes them in place.
    """

    arrays: dict[str, mx.array] = field(default_factory=dict)

    def put(self, name: str, value: mx.array, past: int, axis: int) -> mx.array:
        """Store value at positions past .. past + t - 1 of `axis` (1 or 2); everything so far along that axis."""
        s = past + value.shape[axis]
        whole = self.arrays[name]
        if s - past == whole.shape[axis]:
            value = mx.contiguous(value)  # MLX would keep the value itself, and with it the whole array it is a view of
        if axis == 1:
            whole[:, past:s] = value
            return whole[:, :s]
        whole[:, :, past:s] = value
        return whole[:, :, :s]


class ChunkState(NamedTuple):
    """A chunk in progress. bank (l, b, n, d) float32 as it stood at the start.

    reads (cell gated): K and V of each bank, (b, h, n, e), None for a bank of zeros. tokens (cell released, pooled over the chunk): the
    ids so far (b, s), with `after` the bank they lead to; such a chunk is computed anew in each call and has empty buffers.
    """

    bank: mx.array
    chunks: int
    length: int
    buffers: Buffers
    reads: tuple[tuple[mx.array, mx.array] | None, ...] = ()
    tokens: mx.array | None = None
    after: mx.array | None = None


def evaluate(chunk: ChunkState, *more: mx.array) -> None:
    """Compute everything a call left undone, in one go."""
    mx.eval(*more, *chunk.buffers.arrays.values(), *([] if chunk.after is None else [chunk.after]))


class LM2:
    """A Llama decoder with an LM2 memory. Tokens and state in, logits and state out; holds weights and rotary tables only.

    cpu: it will run on a CPU. compiled: steps of one token go through `mx.compile`.
    """

    def __init__(
        self, config: LM2Config, embed: Linear, blocks: list[Block], norm: RMSNorm, head: Linear, cpu: bool = True, compiled: bool = True
    ):
        self.config = config
        self.cpu = cpu
        self.embed, self.blocks, self.norm, self.head = embed, blocks, norm, head
        cos, sin = rope_tables(config, config.memory.chunk)
        self.cos, self.sin = cos[:, None], sin[:, None]  # (T, 1, e / 2)
        self.bank_of = {layer: j for j, layer in enumerate(config.memory.layers)}
        self.exact = config.memory.cell == "released" and config.memory.gate_pool == "chunk"
        plain = [Pieces(b.project, b.finish, b.memory.step if isinstance(b.memory, GatedMemory) else None) for b in blocks]
        self.pieces = plain
        self.step_pieces = [p.compiled() for p in plain] if compiled else plain
        mx.eval(self.cos, self.sin)

    @property
    def dtype(self) -> mx.Dtype:
        return self.embed.dtype

    def initial_bank(self, batch: int = 1) -> mx.array:
        """The never-written memory, (l, b, n, d) float32: zeros, or eye(n, d) in each bank."""
        shape = self.config.bank_shape(batch)
        if self.config.memory.init == "eye":
            return mx.contiguous(mx.broadcast_to(mx.eye(shape[2], shape[3]), shape))  # (l, b, n, d)
        return mx.zeros(shape)  # (l, b, n, d)

    def first_row(self, chunks: int) -> int:
        """The bank row that position 0 writes in the chunk after `chunks` committed ones."""
        m = self.config.memory
        return chunks % (m.slots // m.chunk) * m.chunk

    def start(self, bank: mx.array, chunks: int = 0) -> ChunkState:
        """Begin a chunk that reads `bank` (l, b, n, d). Allocates the chunk's buffers: constant in size, freed with the chunk."""
        c, m, b = self.config, self.config.memory, bank.shape[1]
        if self.exact:
            return ChunkState(bank, chunks, 0, Buffers(), tokens=mx.zeros((b, 0), mx.int32), after=bank)
        arrays: dict[str, mx.array] = {}
        for i in range(c.num_hidden_layers):
            for name in ("keys", "values"):
                arrays[f"{name}{i}"] = mx.zeros((b, c.num_key_value_heads, m.chunk, c.head_dim), self.dtype)  # (b, k, T, e)
        reads: list[tuple[mx.array, mx.array] | None] = []
        if m.cell == "gated":
            written = np.array(mx.any(bank != 0, axis=(1, 2, 3)))  # (l,)
            for i, j in self.bank_of.items():
                memory = self.blocks[i].memory
                assert isinstance(memory, GatedMemory)
                reads.append(memory.keys_values(bank[j]) if written[j] else None)
                for name in ("seen", "read") if written[j] else ("seen",):
                    arrays[f"{name}{j}"] = mx.zeros((b, m.chunk, c.hidden_size))  # (b, T, d)
        else:
            for i in range(c.num_hidden_layers):
                for name in ("mkeys", "mvalues"):
                    arrays[f"{name}{i}"] = mx.zeros((b, m.heads, m.chunk, m.head_dim), self.dtype)  # (b, h, T, e)
                arrays[f"sums{i}"] = mx.zeros((b, m.chunk, c.hidden_size))  # (b, T, d)
            arrays["rows"] = mx.zeros((b, m.chunk, m.slots))  # (b, T, n)
        chunk = ChunkState(bank, chunks, 0, Buffers(arrays), tuple(reads))
        evaluate(chunk, *(x for kv in reads if kv for x in kv))
        return chunk

    def extend(self, ids: mx.array, chunk: ChunkState, all_logits: bool = False) -> tuple[mx.array, ChunkState]:
        """Feed ids (b, t) after the chunk's `length` positions. Returns lazy float32 logits (b, t or 1, v) and the longer chunk.

        Raises ValueError past the chunk's end.
        """
        t, past = ids.shape[1], chunk.length
        if past + t > self.config.memory.chunk:
            raise ValueError(f"{past} + {t} tokens do not fit in a chunk of {self.config.memory.chunk}")
        if chunk.tokens is not None:
            tokens = mx.concatenate([chunk.tokens[:, :past], ids], axis=1)  # (b, s)
            x, rows = self._layers(tokens, chunk, 0, True)
            assert rows is not None
            x = x[:, past:]
            chunk = chunk._replace(tokens=tokens, after=_written(chunk.bank, rows[None], 0))
        else:
            x, rows = self._layers(ids, chunk, past, False)
            if rows is not None:
                chunk.buffers.put("rows", rows, past, 1)
        x = self.norm(x if all_logits else x[:, -1:]).astype(self.dtype)  # (b, t or 1, d)
        return self.head(x).astype(mx.float32), chunk._replace(length=past + t)

    def commit(self, chunk: ChunkState) -> tuple[mx.array, int]:
        """The bank the next chunk reads, lazy (l, b, n, d), and the chunks committed. An empty chunk changes nothing."""
        s, arrays = chunk.length, chunk.buffers.arrays
        if s == 0:
            return chunk.bank, chunk.chunks
        if chunk.tokens is not None:
            if chunk.tokens.shape[1] != s:
                _, rows = self._layers(chunk.tokens[:, :s], chunk, 0, True)
                assert rows is not None
                return _written(chunk.bank, rows[None], 0), chunk.chunks + 1
            assert chunk.after is not None
            return chunk.after, chunk.chunks + 1
        first = self.first_row(chunk.chunks)
        if self.config.memory.cell == "released":
            return _written(chunk.bank, arrays["rows"][None, :, :s], 0), chunk.chunks + 1
        new = []
        for i, j in self.bank_of.items():
            memory = self.blocks[i].memory
            assert isinstance(memory, GatedMemory)
            read = None if chunk.reads[j] is None else arrays[f"read{j}"][:, :s]
            new.append(memory.rewrite(arrays[f"seen{j}"][:, :s], read, chunk.bank[j, :, first : first + s]))  # (b, s, d)
        return _written(chunk.bank, mx.stack(new), first) if new else chunk.bank, chunk.chunks + 1

    def _layers(self, ids: mx.array, chunk: ChunkState, past: int, alone: bool) -> tuple[mx.array, mx.array | None]:
        """All blocks over ids (b, t) at positions past onward: the last residual stream (b, t, d), and the released bank's rows (b, t, n).

        `alone`: the ids are the whole chunk and nothing is kept in its buffers.
        """
        t = ids.shape[1]
        cos, sin = self.cos[past : past + t], self.sin[past : past + t]  # (t, 1, e / 2)
        put = chunk.buffers.put
        x = self.embed.rows(ids)  # (b, t, d)
        rows = chunk.bank[0, :, past : past + t] if self.config.memory.cell == "released" else None  # (b, t, n)
        for i, (block, pieces) in enumerate(zip(self.blocks, self.step_pieces if t == 1 else self.pieces, strict=True)):
            q, k, v = pieces.project(x, cos, sin)  # (b, h, t, e), (b, k, t, e) twice
            if not alone:
                k, v = put(f"keys{i}", k, past, 2), put(f"values{i}", v, past, 2)  # (b, k, s, e)
            a = attend(q, k, v, self.cpu)  # (b, h, t, e)
            if isinstance(block.memory, ReleasedMemory):
                assert rows is not None
                joined = block.attention.output(a)  # (b, t, d)

                def cache(k: mx.array, v: mx.array, i: int = i) -> tuple[mx.array, mx.array]:
                    return (k, v) if alone else (put(f"mkeys{i}", k, past, 2), put(f"mvalues{i}", v, past, 2))

                pooled = self._pooled(block.memory.lifted(joined), chunk, i, past, alone)
                rows = block.memory.rewrite(joined, rows, cache, pooled)
                x = block.join(x, joined + rows.astype(joined.dtype))
            elif block.memory is None or pieces.read is None:
                x = pieces.finish(x, a)
            else:
                j = self.bank_of[i]
                kv = chunk.reads[j]
                if kv is None:
                    put(f"seen{j}", block.memory.seen(x), past, 1)
                    x = pieces.finish(x, a)
                else:
                    seen, add, read = pieces.read(x, *kv)
                    put(f"seen{j}", seen, past, 1)
                    put(f"read{j}", read, past, 1)
                    x = pieces.finish(x, a, add)
        return x, rows

    def _pooled(self, lifted: mx.array, chunk: ChunkState, i: int, past: int, alone: bool) -> mx.array:
        """Mean of lifted (b, t, d) over the chunk (b, 1, d), or at each token over those up to it (b, t, d)."""
        if alone:
            return lifted.mean(axis=1, keepdims=True)  # (b, 1, d)
        sums = mx.cumsum(lifted, axis=1)  # (b, t, d)
        if past:
            sums = sums + chunk.buffers.arrays[f"sums{i}"][:, past - 1 : past]
        chunk.buffers.put(f"sums{i}", sums, past, 1)
        return sums / mx.arange(past + 1, past + 1 + lifted.shape[1], dtype=mx.float32)[:, None]  # (b, t, d)


def _written(bank: mx.array, rows: mx.array, first: int) -> mx.array:
    """A new bank (l, b, n, d) with rows (l, b, s, d) from row `first`; the old one is unchanged."""
    s = rows.shape[2]
    return mx.concatenate([bank[:, :, :first], rows, bank[:, :, first + s :]], axis=2)  # (l, b, n, d)
