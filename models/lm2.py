"""The LM2 model in PyTorch: blocks, chunks, and the state that goes in and comes out. Knows no files, no text and no sessions.

Axes: b batch, t positions of a call, s positions of the chunk so far, T positions of a chunk, n rows, d hidden, h heads, k key/value heads,
e head width, l banks, L layers, v vocabulary.
"""

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from .config import LM2Config
from .llama import MLP, Attention, RMSNorm, rope_tables, wide
from .memory import GatedMemory, ReleasedMemory


class GatedInside(NamedTuple):
    """Inside a chunk, cell gated. reads: K and V of each bank, (b, h, n, e), None for a bank of zeros. rows: new rows (l, b, T, d)."""

    reads: tuple[tuple[Tensor, Tensor] | None, ...]
    rows: Tensor


class StreamInside(NamedTuple):
    """Inside a chunk, cell released with causal pooling. keys, values (L, b, h, T, e); sums: running sums for the pool (L, b, T, d); rows (1, b, T, d)."""

    keys: Tensor
    values: Tensor
    sums: Tensor
    rows: Tensor


class ExactInside(NamedTuple):
    """Inside a chunk, cell released with chunk pooling: the tokens so far (b, s) and the bank they lead to (1, b, n, d); the chunk is re-run each time."""

    tokens: Tensor
    bank: Tensor


class ChunkState(NamedTuple):
    """A chunk in progress. bank (l, b, n, d) as it stood at the start; keys, values (L, b, k, T, e), filled up to `length`.

    Buffers are written in place after `length` only, so an older state stays good for rewinding until something else is fed after it.
    """

    bank: Tensor
    chunks: int
    length: int
    keys: Tensor
    values: Tensor
    inside: GatedInside | StreamInside | ExactInside


class Block(nn.Module):
    """One decoder layer; `memory` is None where the layer has none."""

    def __init__(self, config: LM2Config, layer: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        cell = ReleasedMemory if config.memory.cell == "released" else GatedMemory
        self.memory: GatedMemory | ReleasedMemory | None = cell(config) if layer in config.memory.layers else None
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def finish(self, x: Tensor, joined: Tensor) -> Tensor:
        """Residual of the (memory-augmented) attention output, then the MLP. (b, t, d)"""
        x = x + joined
        return x + self.mlp(self.post_attention_layernorm(x).to(x.dtype))


class LM2(nn.Module):
    """A Llama decoder with an LM2 memory. Tokens and state in, logits and state out; the module keeps weights and rotary tables only."""

    def __init__(self, config: LM2Config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        self.bank_of = {layer: j for j, layer in enumerate(config.memory.layers)}

    @property
    def blocks(self) -> list[Block]:
        """The layers, by their own type."""
        return cast(list[Block], list(self.layers))

    @property
    def dtype(self) -> torch.dtype:
        return self.embed_tokens.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.embed_tokens.weight.device

    def tables(self) -> tuple[Tensor, Tensor]:
        """Rotary cosines and sines (T, e) for this model's device, in the dtype of its norms."""
        return rope_tables(self.config, self.config.memory.chunk, self.device, wide(self.dtype))

    def initial_bank(self, batch: int = 1) -> Tensor:
        """The never-written memory, (l, b, n, d): zeros, or eye(n, d) in each bank."""
        shape = self.config.bank_shape(batch)
        bank = torch.zeros(shape, dtype=wide(self.dtype), device=self.device)  # (l, b, n, d)
        if self.config.memory.init == "eye":
            bank += torch.eye(shape[2], shape[3], dtype=bank.dtype, device=self.device)
        return bank

    def first_row(self, chunks: int) -> int:
        """The bank row that position 0 writes in the chunk after `chunks` committed ones."""
        m = self.config.memory
        return chunks % (m.slots // m.chunk) * m.chunk

    def forward(
        self, ids: Tensor, bank: Tensor, chunks: int = 0, lengths: Tensor | None = None, trace: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """One whole chunk without caches, differentiable through the memory: ids (b, t), bank (l, b, n, d).

        `lengths` (b,) marks right-padded sequences: rows from a sequence's length onward keep their content. Returns logits (b, t, v)
        in the model's dtype and the next bank. `trace` collects the bank after each memory layer, (b, n, d).
        """
        t = ids.shape[1]
        if t > self.config.memory.chunk:
            raise ValueError(f"{t} tokens do not fit in a chunk of {self.config.memory.chunk}")
        cos, sin = (table[:t] for table in self.tables())
        first = self.first_row(chunks)
        present = None if lengths is None else torch.arange(t, device=ids.device) < lengths[:, None]  # (b, t)
        x = self.embed_tokens(ids)  # (b, t, d)
        banks = list(bank)
        for i, block in enumerate(self.blocks):
            a = block.self_attn(block.input_layernorm(x).to(x.dtype), cos, sin, _no_cache)  # (b, t, d)
            if block.memory is not None:
                j = 0 if self.config.memory.cell == "released" else self.bank_of[i]
                old = banks[j][:, first : first + t]  # (b, t, d)
                if isinstance(block.memory, ReleasedMemory):
                    pooled = _pool(block.memory.token_gate.lifted(a), self.config.memory.gate_pool, present)
                    add, rows = block.memory(a, old, _no_cache, pooled)
                else:
                    add, rows = block.memory(x, block.memory.keys_values(banks[j], x.dtype), old)
                a = a + add
                if present is not None:
                    rows = torch.where(present[..., None], rows, old)
                banks[j] = torch.cat((banks[j][:, :first], rows, banks[j][:, first + t :]), dim=1)  # (b, n, d)
                if trace is not None:
                    trace.append(banks[j])
            x = block.finish(x, a)
        return self.lm_head(self.norm(x).to(x.dtype)), torch.stack(banks) if banks else bank

    def start(self, bank: Tensor, chunks: int = 0) -> ChunkState:
        """Begin a chunk that reads `bank` (l, b, n, d). Allocates the chunk's buffers: constant in size, freed with the chunk."""
        c, m, b = self.config, self.config.memory, bank.shape[1]
        kv = (c.num_hidden_layers, b, c.num_key_value_heads, m.chunk, c.head_dim)
        inside: GatedInside | StreamInside | ExactInside
        if m.cell == "gated":
            reads = []
            for i, j in self.bank_of.items():
                memory = cast(GatedMemory, self.blocks[i].memory)
                reads.append(memory.keys_values(bank[j], self.dtype) if bool(bank[j].any()) else None)
            inside = GatedInside(tuple(reads), bank.new_empty(m.banks, b, m.chunk, c.hidden_size))
        elif m.gate_pool == "causal":
            mem = (c.num_hidden_layers, b, m.heads, m.chunk, m.head_dim)
            new = self.embed_tokens.weight.new_empty
            inside = StreamInside(
                new(mem), new(mem), bank.new_empty(kv[0], b, m.chunk, c.hidden_size), bank.new_empty(1, b, m.chunk, m.slots)
            )
        else:
            inside = ExactInside(torch.empty(b, 0, dtype=torch.long, device=self.device), bank)
            kv = (0, b, 0, 0, 0)
        empty = self.embed_tokens.weight.new_empty
        return ChunkState(bank, chunks, 0, empty(kv), empty(kv), inside)

    def extend(self, ids: Tensor, chunk: ChunkState, tables: tuple[Tensor, Tensor], all_logits: bool = False) -> tuple[Tensor, ChunkState]:
        """Feed ids (b, t) after the chunk's `length` positions. Returns float32 (or wider) logits (b, t or 1, v) and the longer chunk."""
        t, past = ids.shape[1], chunk.length
        if past + t > self.config.memory.chunk:
            raise ValueError(f"{past} + {t} tokens do not fit in a chunk of {self.config.memory.chunk}")
        if isinstance(chunk.inside, ExactInside):
            tokens = torch.cat((chunk.inside.tokens[:, :past], ids), dim=1)  # (b, s)
            logits, bank = self(tokens, chunk.bank, chunk.chunks)
            chunk = chunk._replace(length=past + t, inside=ExactInside(tokens, bank))
            return logits[:, past if all_logits else -1 :].to(wide(self.dtype)), chunk
        s = past + t
        cos, sin = (table[past:s] for table in tables)
        x = self.embed_tokens(ids)  # (b, t, d)
        rows = None
        for i, block in enumerate(self.blocks):

            def cache(k: Tensor, v: Tensor, i: int = i) -> tuple[Tensor, Tensor]:
                return _kept(chunk.keys[i], chunk.values[i], k, v, past, s)

            last = i == len(self.layers) - 1 and block.memory is None and not all_logits  # nobody looks at the other positions
            a = block.self_attn(block.input_layernorm(x).to(x.dtype), cos, sin, cache, last)  # (b, t or 1, d)
            if isinstance(chunk.inside, GatedInside):
                if block.memory is not None:
                    a = self._gated(cast(GatedMemory, block.memory), self.bank_of[i], x, a, chunk, past)
            else:
                rows = self._streamed(cast(ReleasedMemory, block.memory), i, a, rows, chunk, past)
                a = a + rows.to(a.dtype)
            x = block.finish(x[:, -1:] if last else x, a)
        if isinstance(chunk.inside, StreamInside):
            chunk.inside.rows[0, :, past:s] = cast(Tensor, rows)
        logits = self.lm_head(self.norm(x if all_logits else x[:, -1:]).to(x.dtype))  # (b, t or 1, v)
        return logits.to(wide(self.dtype)), chunk._replace(length=s)

    def commit(self, chunk: ChunkState) -> tuple[Tensor, int]:
        """The bank the next chunk reads, (l, b, n, d), and the chunks committed. An empty chunk changes nothing."""
        if chunk.length == 0:
            return chunk.bank, chunk.chunks
        if isinstance(chunk.inside, ExactInside):
            return self(chunk.inside.tokens[:, : chunk.length], chunk.bank, chunk.chunks)[1], chunk.chunks + 1
        first = self.first_row(chunk.chunks)
        bank = chunk.bank.clone()
        bank[:, :, first : first + chunk.length] = chunk.inside.rows[:, :, : chunk.length]
        return bank, chunk.chunks + 1

    def _gated(self, memory: GatedMemory, j: int, x: Tensor, a: Tensor, chunk: ChunkState, past: int) -> Tensor:
        inside, s = chunk.inside, past + x.shape[1]
        assert isinstance(inside, GatedInside)
        first = self.first_row(chunk.chunks)
        add, rows = memory(x, inside.reads[j], chunk.bank[j][:, first + past : first + s])
        inside.rows[j, :, past:s] = rows
        return a if add is None else a + add

    def _streamed(self, memory: ReleasedMemory, i: int, a: Tensor, rows: Tensor | None, chunk: ChunkState, past: int) -> Tensor:
        inside, s = chunk.inside, past + a.shape[1]
        assert isinstance(inside, StreamInside)
        sums = inside.sums[i]  # (b, T, d)
        sums[:, past:s] = memory.token_gate.lifted(a).cumsum(dim=1)
        if past:
            sums[:, past:s] += sums[:, past - 1 : past]
        count = torch.arange(past + 1, s + 1, device=a.device, dtype=sums.dtype)  # (t,)
        if rows is None:
            rows = chunk.bank[0, :, past:s]  # (b, t, n)
        return memory(a, rows, lambda k, v: _kept(inside.keys[i], inside.values[i], k, v, past, s), sums[:, past:s] / count[:, None])[1]


def _no_cache(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return k, v


def _kept(keys: Tensor, values: Tensor, k: Tensor, v: Tensor, past: int, s: int) -> tuple[Tensor, Tensor]:
    """Store new k, v (b, k, t, e) at positions past .. s - 1 of one layer's buffers; all of them so far (b, k, s, e)."""
    keys[:, :, past:s] = k
    values[:, :, past:s] = v
    return keys[:, :, :s], values[:, :, :s]


def _pool(lifted: Tensor, pool: str, present: Tensor | None) -> Tensor:
    """Mean of lifted (b, t, d) over the tokens present (b, 1, d), or at each token over those up to it (b, t, d)."""
    if pool == "causal":
        count = torch.arange(1, lifted.shape[1] + 1, device=lifted.device, dtype=lifted.dtype)
        return lifted.cumsum(dim=1) / count[:, None]  # (b, t, d)
    if present is None:
        return lifted.mean(dim=1, keepdim=True)  # (b, 1, d)
    weight = present.to(lifted.dtype)
    return (lifted * weight[..., None]).sum(dim=1, keepdim=True) / weight.sum(dim=1)[:, None, None]  # (b, 1, d)
