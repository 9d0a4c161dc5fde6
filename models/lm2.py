"""The LM2 model in PyTorch: blocks, windows, folds, and the state that goes in and comes out. Knows no files, no text and no sessions.

A window holds the keys and values of up to W tokens. A fold enters the rows of the tokens since the last one into the bank; the window goes on.
Axes: b batch, t positions of a call, s positions of the window so far, W positions of a window, T positions between two folds at most, n rows,
d hidden, h heads, k key/value heads, e head width, l banks, L layers, v vocabulary.
"""

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from .config import LM2Config
from .llama import MLP, Attention, Embedding, RMSNorm, rope_tables, wide
from .memory import GatedMemory, ReleasedMemory
from .opening import Opening, carried_with
from .topics import Topics


class GatedInside(NamedTuple):
    """Inside a window, cell gated. reads: K and V of each memory's bank, (b, h, n, e), None for a bank of zeros. around: what is near each row of the
    topics' bank, (b, n, d); None without topics, or for a bank of zeros.

    Of positions `folded` on, one of: rows, (l, b, T, d), made at once; writes, (m, b, T, 2d), what the rows of m memories are made of when they are asked
    for: nobody reads a row before the next fold, and its matrices are then multiplied by all tokens at once. A topics' row is made of the window's values.
    """

    reads: tuple[tuple[Tensor, Tensor] | None, ...]
    rows: Tensor | None
    around: Tensor | None = None
    writes: Tensor | None = None


class StreamInside(NamedTuple):
    """Inside a window, cell released with causal pooling. keys, values (L, b, h, T, e); sums: running sums for the pool (L, b, T, d); rows (1, b, T, d)."""

    keys: Tensor
    values: Tensor
    sums: Tensor
    rows: Tensor


class ExactInside(NamedTuple):
    """Inside a window, cell released with chunk pooling: the tokens so far (b, s) and the bank they lead to (1, b, n, d); all are re-run each time."""

    tokens: Tensor
    bank: Tensor


class WindowState(NamedTuple):
    """A window in progress. bank (l, b, n, d) as of the last fold; keys, values (L, b, k, W, e), filled up to `length`.

    written: tokens in the bank, ever; token number i lies in row i mod n. Positions below `folded` are in the bank, by a fold or because they were
    carried over from an earlier window (the first `carried`). The first `opened` are an opening's.
    Buffers are written in place after `length` only, so an older state stays good for rewinding until something else is fed after it, or it is folded.
    """

    bank: Tensor
    written: int
    length: int
    keys: Tensor
    values: Tensor
    inside: GatedInside | StreamInside | ExactInside
    folded: int = 0
    carried: int = 0
    opened: int = 0

    @property
    def stale(self) -> bool:
        """Never: a fold leaves the state before it as it was."""
        return False


class Block(nn.Module):
    """One decoder layer; `memory` is None where the layer has none."""

    def __init__(self, config: LM2Config, layer: int):
        super().__init__()
        plain = config.backbone.norms == "after"  # attention and MLP see the stream as it is
        self.input_layernorm = nn.Identity() if plain else RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.memory: GatedMemory | ReleasedMemory | None = None
        if layer in config.memory.layers:
            self.memory = ReleasedMemory(config) if config.memory.cell == "released" else GatedMemory(config, layer)
        self.post_attention_layernorm = nn.Identity() if plain else RMSNorm(config.hidden_size, config.rms_norm_eps)
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
        self.embed_tokens = Embedding(config)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        self.bank_of = {layer: j for j, layer in enumerate(config.memory.layers)}  # the topics' bank, if there is one, is the last

    @property
    def topics(self) -> Topics | None:
        """The topics, which the first memory holds."""
        layers = self.config.memory.layers
        memory = self.blocks[layers[0]].memory if layers else None
        return memory.topics if isinstance(memory, GatedMemory) else None

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

    def tables(self, window: int | None = None) -> tuple[Tensor, Tensor]:
        """Rotary cosines and sines (W, e) for this model's device, in the dtype of its norms. `window`: W, by default a chunk."""
        return rope_tables(self.config, window or self.config.memory.chunk, self.device, wide(self.dtype))

    def initial_bank(self, batch: int = 1) -> Tensor:
        """The never-written memory, (l, b, n, d): zeros, or eye(n, d) in each bank."""
        shape = self.config.bank_shape(batch)
        bank = torch.zeros(shape, dtype=wide(self.dtype), device=self.device)  # (l, b, n, d)
        if self.config.memory.init == "eye":
            bank += torch.eye(shape[2], shape[3], dtype=bank.dtype, device=self.device)
        return bank

    def first_row(self, chunks: int) -> int:
        """The bank row of the token after `chunks` whole chunks."""
        m = self.config.memory
        return 0 if m.cell == "released" else chunks * m.chunk % m.slots

    def places(self, written: int, count: int) -> Tensor:
        """The bank's rows (count,) that `count` tokens after `written` others are written in: number i in row i mod n (cell released: from row 0)."""
        m = self.config.memory
        first = 0 if m.cell == "released" else written % m.slots
        return torch.arange(first, first + count, device=self.device) % m.slots  # (count,)

    def anew(self, written: int, count: int) -> Tensor:
        """The bank's rows (c,) whose K or V change when `count` tokens after `written` others enter: theirs, and with `memory.keys` pair the one behind."""
        m = self.config.memory
        return self.places(written, min(count + (m.keys == "pair"), m.slots))

    def near(self, written: int, count: int) -> Tensor:
        """The rows (c,) whose surroundings change when `count` tokens after `written` others enter."""
        m = self.config.memory
        return self.places(written - m.topic_around, min(count + 2 * m.topic_around, m.slots))

    def forward(
        self, ids: Tensor, bank: Tensor, written: int = 0, lengths: Tensor | None = None, trace: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """One whole chunk without caches, differentiable through the memory: ids (b, t), bank (l, b, n, d) after `written` tokens.

        `lengths` (b,) marks right-padded sequences: rows from a sequence's length onward keep their content. Returns logits (b, t, v)
        in the model's dtype and the next bank. `trace` collects the bank after each memory layer, (b, n, d).
        """
        t = ids.shape[1]
        if t > self.config.memory.chunk:
            raise ValueError(f"{t} tokens do not fit in a chunk of {self.config.memory.chunk}")
        cos, sin = (table[:t] for table in self.tables())
        places = self.places(written, t)  # (t,)
        present = None if lengths is None else torch.arange(t, device=ids.device) < lengths[:, None]  # (b, t)
        x = self.embed_tokens(ids)  # (b, t, d)
        banks = list(bank)
        values: dict[int, Tensor] = {}
        looks = gain = None
        for i, block in enumerate(self.blocks):

            def cache(k: Tensor, v: Tensor, i: int = i) -> tuple[Tensor, Tensor]:
                if i in self.config.memory.topics:
                    values[i] = v
                return k, v

            a = block.self_attn(block.input_layernorm(x).to(x.dtype), cos, sin, cache)  # (b, t, d)
            if block.memory is not None:
                j = 0 if self.config.memory.cell == "released" else self.bank_of[i]
                old = banks[j][:, places]  # (b, t, d)
                if isinstance(block.memory, ReleasedMemory):
                    pooled = _pool(block.memory.token_gate.lifted(a), self.config.memory.gate_pool, present)
                    add, rows = block.memory(a, old, _no_cache, pooled)
                else:
                    said = block.memory.said(x)  # (b, t, d), (b, t, 2d)
                    if block.memory.topics is not None:
                        topics, before = block.memory.topics, banks[-1][:, places]  # (b, t, d)
                        features = topics.features([values[k] for k in topics.layers])  # (b, t, f)
                        looks, gain = topics.looks(topics.lately(features, t), topics.around(banks[-1])), topics.gain  # (b, t, n)
                        own = topics.rows(features, block.memory.told(said[1]), before)  # (b, t, d)
                        own = own if present is None else torch.where(present[..., None], own, before)
                        banks[-1] = banks[-1].index_copy(1, places, own)  # (b, n, d)
                    look = None if looks is None or gain is None else gain[j] * looks  # (b, t, n)
                    add, rows = block.memory(x, block.memory.keys_values(banks[j], x.dtype, told=self.told(bank)), old, look, said)
                a = a + add
                if present is not None:
                    rows = torch.where(present[..., None], rows, old)
                banks[j] = banks[j].index_copy(1, places, rows)  # (b, n, d)
                if trace is not None:
                    trace.append(banks[j])
            x = block.finish(x, a)
        return self.lm_head(self.norm(x).to(x.dtype)), torch.stack(banks) if banks else bank

    def start(
        self, bank: Tensor, written: int = 0, window: int | None = None, carried: int = 0, opening: Opening | None = None
    ) -> WindowState:
        """Begin a window that reads `bank` (l, b, n, d), which holds `written` tokens. Allocates its buffers: constant in size, freed with the window.

        `window`: positions W, by default a chunk. The first `carried` tokens fed to it are in the bank already and are not written again.
        `opening`: keys and values of its first positions, which are carried; see `carried_with`. Raises ValueError for a window beyond the model's
        positions, or where cell released is given another window than its chunk; BackendError for an opening that does not fit.
        """
        c, m, b = self.config, self.config.memory, bank.shape[1]
        window = m.chunk if window is None else window
        self.check_window(window, carried)
        carried = carried_with(opening, c, window, carried, torch.finfo(self.dtype).max)
        kv = (c.num_hidden_layers, b, c.num_key_value_heads, window, c.head_dim)
        inside: GatedInside | StreamInside | ExactInside
        if m.cell == "gated":
            reads = []
            for i, j in self.bank_of.items():
                memory = cast(GatedMemory, self.blocks[i].memory)
                reads.append(memory.keys_values(bank[j], self.dtype, told=self.told(bank)) if self._heard(bank, j) else None)
            around = self.topics.around(bank[-1]) if self.topics is not None and bool(bank.any()) else None
            inside = GatedInside(tuple(reads), None, around, bank.new_empty(len(m.layers), b, m.chunk, 2 * c.hidden_size))
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
        return begun(WindowState(bank, written, 0, empty(kv), empty(kv), inside, carried, carried), opening)

    def check_window(self, window: int, carried: int = 0) -> None:
        """Raise ValueError for a window this model cannot have."""
        m, most = self.config.memory, self.config.max_position_embeddings
        if not 1 <= window <= most:
            raise ValueError(f"a window of {window} tokens does not fit the model's {most} positions")
        if m.cell == "released" and (window != m.chunk or carried):
            raise ValueError(f"cell released has windows of its chunk, {m.chunk} tokens, and carries none over")
        if not 0 <= carried < window:
            raise ValueError(f"{carried} carried tokens do not fit in a window of {window}")

    def extend(self, ids: Tensor, state: WindowState, tables: tuple[Tensor, Tensor], all_logits: bool = False) -> tuple[Tensor, WindowState]:
        """Feed ids (b, t) after the window's `length` positions. Returns float32 (or wider) logits (b, t or 1, v) and the longer window.

        Raises ValueError past the window's end, or for more than a chunk of tokens since the last fold.
        """
        t, past = ids.shape[1], state.length
        self.check_room(state, t)
        if isinstance(state.inside, ExactInside):
            tokens = torch.cat((state.inside.tokens[:, :past], ids), dim=1)  # (b, s)
            logits, bank = self(tokens, state.bank, state.written)
            state = state._replace(length=past + t, inside=ExactInside(tokens, bank))
            return logits[:, past if all_logits else -1 :].to(wide(self.dtype)), state
        s = past + t
        cos, sin = (table[past:s] for table in tables)
        x = self.embed_tokens(ids)  # (b, t, d)
        rows = looks = None
        for i, block in enumerate(self.blocks):

            def cache(k: Tensor, v: Tensor, i: int = i) -> tuple[Tensor, Tensor]:
                return kept(state.keys[i], state.values[i], k, v, past, s)

            last = i == len(self.layers) - 1 and block.memory is None and not all_logits  # nobody looks at the other positions
            a = block.self_attn(block.input_layernorm(x).to(x.dtype), cos, sin, cache, last)  # (b, t or 1, d)
            if isinstance(state.inside, GatedInside):
                if isinstance(block.memory, GatedMemory):
                    said = None if state.inside.rows is None else block.memory.said(x)  # (b, t, d), (b, t, 2d)
                    if block.memory.topics is not None:
                        looks = self.topic_looks(block.memory.topics, t, state, past)  # (b, t, n)
                        if said is not None:
                            self._write_topics(block.memory.topics, block.memory.told(said[1]), state, past)
                    a = self._gated(block.memory, self.bank_of[i], x, a, state, past, looks, said)
            else:
                rows = self._streamed(cast(ReleasedMemory, block.memory), i, a, rows, state, past)
                a = a + rows.to(a.dtype)
            x = block.finish(x[:, -1:] if last else x, a)
        if isinstance(state.inside, StreamInside):
            state.inside.rows[0, :, past:s] = cast(Tensor, rows)
        logits = self.lm_head(self.norm(x if all_logits else x[:, -1:]).to(x.dtype))  # (b, t or 1, v)
        return logits.to(wide(self.dtype)), state._replace(length=s)

    def check_room(self, state: WindowState, t: int) -> None:
        """Raise ValueError where t tokens more do not fit in the window, or in a chunk since the last fold."""
        end, window, most = state.length + t, self.window(state), self.config.memory.chunk
        if end > window:
            raise ValueError(f"{state.length} + {t} tokens do not fit in a window of {window}")
        if end - state.folded > most:
            raise ValueError(f"{end - state.folded} tokens since the last fold are more than a chunk of {most}: fold first")

    def window(self, state: WindowState) -> int:
        """Positions of the window."""
        return self.config.memory.chunk if isinstance(state.inside, ExactInside) else state.keys.shape[3]

    def fold(self, state: WindowState) -> WindowState:
        """Enter the rows of positions `folded` .. `length` - 1 into the bank and make anew what is read of them; the window goes on. Cell gated.

        The state passed in stays as it was. Raises ValueError for cell released, which reads its rows inside the window.
        """
        inside, count = state.inside, state.length - state.folded
        if not isinstance(inside, GatedInside):
            raise ValueError("cell released cannot fold: its chunk is its window")
        if count <= 0:
            return state
        bank, _ = self._entered(state)
        places = self.anew(state.written, count)  # (c,)
        reads = []
        for i, j in self.bank_of.items():
            memory = cast(GatedMemory, self.blocks[i].memory)
            new = memory.keys_values(bank[j], self.dtype, places, self.told(bank))  # (b, h, c, e) each
            old = inside.reads[j]
            if old is None:
                zeros = new[0].new_zeros(*new[0].shape[:2], bank.shape[2], new[0].shape[3])  # (b, h, n, e)
                old = (zeros, zeros)
            reads.append((old[0].index_copy(2, places, new[0]), old[1].index_copy(2, places, new[1])))
        around, topics = inside.around, self.topics
        if topics is not None:
            near = self.near(state.written, count)  # (c,)
            around = topics.around(bank[-1]) if around is None else around.index_copy(1, near, topics.around(bank[-1], near))  # (b, n, d)
        rows, writes = (None if own is None else torch.empty_like(own) for own in (inside.rows, inside.writes))  # the old ones are the old state's
        inside = GatedInside(tuple(reads), rows, around, writes)
        return state._replace(bank=bank, written=state.written + count, folded=state.length, inside=inside)

    def _entered(self, state: WindowState) -> tuple[Tensor, Tensor]:
        """The bank (l, b, n, d) with the rows of positions `folded` on in it, and their places (count,)."""
        places = self.places(state.written, state.length - state.folded)
        return state.bank.index_copy(2, places, self.rows(state)), places

    def rows(self, state: WindowState) -> Tensor:
        """The rows (l, b, p, d) of the p positions `folded` .. `length` - 1, which no bank holds yet."""
        inside, count = state.inside, max(0, state.length - state.folded)
        assert isinstance(inside, GatedInside | StreamInside)
        if isinstance(inside, StreamInside) or inside.writes is None:
            assert inside.rows is not None
            return inside.rows[:, :, :count]
        old = state.bank[:, :, self.places(state.written, count)]  # (l, b, p, d)
        rows = torch.empty_like(old)  # (l, b, p, d)
        for i, j in self.bank_of.items():
            memory = cast(GatedMemory, self.blocks[i].memory)
            rows[j], told = memory.rewritten(inside.writes[j, :, :count], old[j])  # (b, p, d), (b, p, 1)
            if memory.topics is not None:
                values = [state.values[k][:, :, state.length - count : state.length] for k in memory.topics.layers]  # (b, k, p, e) each
                rows[-1] = memory.topics.rows(memory.topics.features(values), told, old[-1])
        return rows

    def commit(self, state: WindowState) -> tuple[Tensor, int]:
        """The memory with everything of the window in it: the bank (l, b, n, d), and the tokens written. Nothing new changes nothing."""
        count = state.length - state.folded
        if count <= 0:
            return state.bank, state.written
        if isinstance(state.inside, ExactInside):
            return self(state.inside.tokens[:, : state.length], state.bank, state.written)[1], state.written + count
        return self._entered(state)[0], state.written + count

    def _gated(
        self, memory: GatedMemory, j: int, x: Tensor, a: Tensor, state: WindowState, past: int, looks: Tensor | None, said: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        assert isinstance(state.inside, GatedInside)
        if looks is not None:
            assert self.topics is not None
            looks = self.topics.gain[j] * looks  # (b, t, n)
        old = None if state.inside.rows is None else self.old_rows(j, x.shape[1], state, past)  # (b, t, d)
        add, new = memory(x, state.inside.reads[j], old, looks, said)
        self.write_rows(j, new, state, past)
        return a if add is None else a + add

    def told(self, bank: Tensor) -> Tensor | None:
        """The topics' bank (b, n, d) of a bank (l, b, n, d), where values are made of it too."""
        return bank[-1] if self.config.memory.values == "topics" else None

    def _heard(self, bank: Tensor, j: int) -> bool:
        """Whether anything is there that memory j reads of a bank (l, b, n, d)."""
        told = self.told(bank)
        return bool(bank[j].any()) or (told is not None and bool(told.any()))

    def topic_looks(self, topics: Topics, t: int, state: WindowState, past: int) -> Tensor | None:
        """What topics add to the memories' logits for t positions from `past` on, (b, t, n), None for a bank of zeros."""
        assert isinstance(state.inside, GatedInside)
        if state.inside.around is None:
            return None
        begin = max(0, past - topics.back + 1)
        features = topics.features([state.values[i][:, :, begin : past + t] for i in topics.layers])  # (b, s', f)
        return topics.looks(topics.lately(features, t), state.inside.around)

    def _write_topics(self, topics: Topics, told: Tensor, state: WindowState, past: int) -> None:
        """Keep the topics' rows of t positions from `past` on, written as far as `told` (b, t, 1) says."""
        t = told.shape[1]
        features = topics.features([state.values[i][:, :, past : past + t] for i in topics.layers])  # (b, t, f)
        self.write_rows(-1, topics.rows(features, told, self.old_rows(-1, t, state, past)), state, past)

    def old_rows(self, j: int, t: int, state: WindowState, past: int) -> Tensor:
        """The rows (b, t, d) of bank j that t tokens from position `past` on rewrite, zeros for those that are in the bank already."""
        known = self._known(t, state, past)
        old = state.bank[j][:, self.places(state.written + past + known - state.folded, t - known)]  # (b, t - known, d)
        return torch.cat((old.new_zeros(len(old), known, old.shape[2]), old), dim=1) if known else old  # (b, t, d)

    def write_rows(self, j: int, rows: Tensor, state: WindowState, past: int) -> None:
        """Keep new rows (b, t, d) of bank j, or what they will be made of (b, t, 2d), until the fold, those of carried tokens not."""
        assert isinstance(state.inside, GatedInside)
        inside = state.inside.rows if state.inside.writes is None else state.inside.writes
        assert inside is not None
        t = rows.shape[1]
        known = self._known(t, state, past)
        at = past + known - state.folded
        if known < t:
            inside[j, :, at : at + t - known] = rows[:, known:]

    @staticmethod
    def _known(t: int, state: WindowState, past: int) -> int:
        """How many of t tokens from position `past` on were carried: they read the memory and are not written again."""
        return min(max(state.folded - past, 0), t)

    def _streamed(self, memory: ReleasedMemory, i: int, a: Tensor, rows: Tensor | None, state: WindowState, past: int) -> Tensor:
        inside, s = state.inside, past + a.shape[1]
        assert isinstance(inside, StreamInside)
        sums = inside.sums[i]  # (b, T, d)
        sums[:, past:s] = memory.token_gate.lifted(a).cumsum(dim=1)
        if past:
            sums[:, past:s] += sums[:, past - 1 : past]
        count = torch.arange(past + 1, s + 1, device=a.device, dtype=sums.dtype)  # (t,)
        if rows is None:
            rows = state.bank[0, :, past:s]  # (b, t, n)
        return memory(a, rows, lambda k, v: kept(inside.keys[i], inside.values[i], k, v, past, s), sums[:, past:s] / count[:, None])[1]


def _no_cache(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return k, v


def begun(state: WindowState, opening: Opening | None) -> WindowState:
    """A window of length 0 with an opening, if there is one, in its buffers."""
    if opening is None:
        return state
    p = opening.positions
    for buffer, given in zip((state.keys, state.values), opening, strict=True):
        buffer[:, :, :, :p] = torch.tensor(given, device=buffer.device)[:, None].to(buffer.dtype)  # (L, 1, k, p, e)
    return state._replace(length=p, opened=p)


def kept(keys: Tensor, values: Tensor, k: Tensor, v: Tensor, past: int, s: int) -> tuple[Tensor, Tensor]:
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
