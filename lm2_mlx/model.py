"""The LM2 model in MLX: blocks, windows, folds, and the state that goes in and comes out. Knows no files, no text and no sessions.

Axes: b batch, t positions of a call, s positions of the window so far, W positions of a window, T positions between two folds at most, n rows,
d hidden, h heads, k key/value heads, e head width, l banks, L layers, v vocabulary.

Everything here builds a lazy graph; `evaluate` runs it, once per call of the model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from ..models.config import LM2Config
from ..models.opening import Opening, carried_with
from .linear import Linear
from .llama import MLP, Attention, RMSNorm, attend, rope_tables
from .memory import GatedMemory, ReleasedMemory
from .topics import Topics
from .window import Buffers, WindowState, evaluate, placed, taken


@dataclass
class Block:
    """One decoder layer; `memory` is None where the layer has none, a norm where attention or MLP see the residual stream as it is."""

    input_norm: RMSNorm | None
    attention: Attention
    memory: GatedMemory | ReleasedMemory | None
    post_norm: RMSNorm | None
    mlp: MLP

    def project(self, x: mx.array, cos: mx.array, sin: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """Residual stream x (b, t, d) -> q (b, h, t, e), k and v (b, k, t, e)."""
        return self.attention.project(_seen(self.input_norm, x), cos, sin)

    def finish(self, x: mx.array, a: mx.array, add: mx.array | None = None) -> mx.array:
        """Residual of the attention's heads a (b, h, t, e), of what the memory adds (b, t, d), then the MLP. (b, t, d)"""
        joined = self.attention.output(a)  # (b, t, d)
        return self.join(x, joined if add is None else joined + add.astype(joined.dtype))

    def join(self, x: mx.array, joined: mx.array) -> mx.array:
        """Residual of what the attention and the memory give together, then the MLP. (b, t, d)"""
        x = x + joined
        return x + self.mlp(_seen(self.post_norm, x))


def _seen(norm: RMSNorm | None, x: mx.array) -> mx.array:
    return x if norm is None else norm(x).astype(x.dtype)  # (b, t, d)


class Pieces(NamedTuple):
    """What of a block does not depend on how long the window is: compiled once for steps of one token."""

    project: Callable[..., tuple[mx.array, mx.array, mx.array]]
    finish: Callable[..., mx.array]
    read: Callable[..., tuple[mx.array, mx.array, mx.array]] | None

    def compiled(self) -> "Pieces":
        return Pieces(mx.compile(self.project), mx.compile(self.finish), None if self.read is None else mx.compile(self.read))


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
        self.lengthen(config.memory.chunk)
        self.bank_of = {layer: j for j, layer in enumerate(config.memory.layers)}  # the topics' bank, if there is one, is the last
        self.topics = next((b.memory.topics for b in blocks if isinstance(b.memory, GatedMemory) and b.memory.topics), None)
        self.exact = config.memory.cell == "released" and config.memory.gate_pool == "chunk"
        plain = [Pieces(b.project, b.finish, b.memory.step if isinstance(b.memory, GatedMemory) else None) for b in blocks]
        self.pieces = plain
        self.step_pieces = [p.compiled() for p in plain] if compiled else plain

    def lengthen(self, window: int) -> None:
        """Make rotary tables for windows of that many positions."""
        cos, sin = rope_tables(self.config, window)
        self.cos, self.sin = cos[:, None], sin[:, None]  # (W, 1, e / 2)
        mx.eval(self.cos, self.sin)

    def embedded(self, ids: mx.array) -> mx.array:
        """The residual stream as it begins, (b, t, d)."""
        x, scale = self.embed.rows(ids), self.config.backbone.embedding_scale  # (b, t, d)
        return x if scale == 1 else x * scale

    @property
    def dtype(self) -> mx.Dtype:
        return self.embed.dtype

    def initial_bank(self, batch: int = 1) -> mx.array:
        """The never-written memory, (l, b, n, d) float32: zeros, or eye(n, d) in each bank."""
        shape = self.config.bank_shape(batch)
        if self.config.memory.init == "eye":
            return mx.contiguous(mx.broadcast_to(mx.eye(shape[2], shape[3]), shape))  # (l, b, n, d)
        return mx.zeros(shape)  # (l, b, n, d)

    def first_row(self, written: int) -> int:
        """The bank row of the token after `written` others."""
        m = self.config.memory
        return 0 if m.cell == "released" else written % m.slots

    def start(
        self, bank: mx.array, written: int = 0, window: int | None = None, carried: int = 0, opening: Opening | None = None
    ) -> WindowState:
        """Begin a window that reads `bank` (l, b, n, d), which holds `written` tokens. Allocates its buffers: constant in size, freed with the window.

        `window`: positions W, by default a chunk. The first `carried` tokens fed to it are in the bank already and are not written again.
        `opening`: keys and values of its first positions, which are carried; see `carried_with`. Raises ValueError for a window beyond the model's
        positions, or where cell released is given another window than its chunk; BackendError for an opening that does not fit.
        """
        c, m, b = self.config, self.config.memory, bank.shape[1]
        size = m.chunk if window is None else window
        if not 1 <= size <= c.max_position_embeddings:
            raise ValueError(f"a window of {size} tokens does not fit the model's {c.max_position_embeddings} positions")
        if m.cell == "released" and (size != m.chunk or carried):
            raise ValueError(f"cell released has windows of its chunk, {m.chunk} tokens, and carries none over")
        if not 0 <= carried < size:
            raise ValueError(f"{carried} carried tokens do not fit in a window of {size}")
        carried = carried_with(opening, c, size, carried, mx.finfo(self.dtype).max)
        if size > len(self.cos):
            self.lengthen(size)
        if self.exact:
            return WindowState(bank, written, 0, Buffers(), tokens=mx.zeros((b, 0), mx.int32), after=bank)
        arrays: dict[str, mx.array] = {}
        for i in range(c.num_hidden_layers):
            for name in ("keys", "values"):
                arrays[f"{name}{i}"] = mx.zeros((b, c.num_key_value_heads, size, c.head_dim), self.dtype)  # (b, k, W, e)
        opened = 0 if opening is None else opening.positions
        if opening is not None:
            for name, given in zip(opening._fields, opening, strict=True):
                for i, layer in enumerate(given):
                    arrays[f"{name}{i}"][:, :, :opened] = mx.array(layer.astype(np.float32)).astype(self.dtype)  # (k, p, e)
        reads: list[tuple[mx.array, mx.array] | None] = []
        around = None
        if m.cell == "gated":
            heard = np.array(mx.any(bank != 0, axis=(1, 2, 3)))  # (l,)
            if m.values == "topics":
                heard = heard | heard[-1]
            for i, j in self.bank_of.items():
                memory = self.blocks[i].memory
                assert isinstance(memory, GatedMemory)
                reads.append(memory.keys_values(bank[j], told=self._told(bank)) if heard[j] else None)
                for name in ("seen", "read") if heard[j] else ("seen",):
                    arrays[f"{name}{j}"] = mx.zeros((b, m.chunk, c.hidden_size))  # (b, T, d)
            if self.topics is not None and heard[-1]:
                around = self.topics.around(bank[-1], 0, m.slots)  # (b, n, d)
        else:
            for i in range(c.num_hidden_layers):
                for name in ("mkeys", "mvalues"):
                    arrays[f"{name}{i}"] = mx.zeros((b, m.heads, m.chunk, m.head_dim), self.dtype)  # (b, h, T, e)
                arrays[f"sums{i}"] = mx.zeros((b, m.chunk, c.hidden_size))  # (b, T, d)
            arrays["rows"] = mx.zeros((b, m.chunk, m.slots))  # (b, T, n)
        state = WindowState(
            bank, written, opened, Buffers(arrays, carried), tuple(reads), folded=carried, carried=carried, around=around, opened=opened
        )
        evaluate(state, *(x for kv in reads if kv for x in kv), *([] if around is None else [around]))
        return state

    def extend(self, ids: mx.array, state: WindowState, all_logits: bool = False) -> tuple[mx.array, WindowState]:
        """Feed ids (b, t) after the window's `length` positions. Returns lazy float32 logits (b, t or 1, v) and the longer window.

        Raises ValueError past the window's end, or for more than a chunk of tokens since the last fold.
        """
        t, past, most = ids.shape[1], state.length, self.config.memory.chunk
        if past + t > self.window(state):
            raise ValueError(f"{past} + {t} tokens do not fit in a window of {self.window(state)}")
        if past + t - state.folded > most:
            raise ValueError(f"{past + t - state.folded} tokens since the last fold are more than a chunk of {most}: fold first")
        if state.tokens is not None:
            tokens = mx.concatenate([state.tokens[:, :past], ids], axis=1)  # (b, s)
            x, rows = self._layers(tokens, state, 0, True)
            assert rows is not None
            x = x[:, past:]
            state = state._replace(tokens=tokens, after=placed(state.bank, rows[None], 0))
        else:
            x, rows = self._layers(ids, state, past, False)
            if rows is not None:
                state.buffers.put("rows", rows, past, 1)
        x = self.norm(x if all_logits else x[:, -1:]).astype(self.dtype)  # (b, t or 1, d)
        return self.head(x).astype(mx.float32), state._replace(length=past + t)

    def window(self, state: WindowState) -> int:
        """Positions of the window."""
        return self.config.memory.chunk if state.tokens is not None else state.buffers.arrays["keys0"].shape[2]

    def fold(self, state: WindowState) -> WindowState:
        """Enter the rows of positions `folded` .. `length` - 1 into the bank and make anew what is read of them; the window goes on. Cell gated.

        The state passed in is stale afterwards. Raises ValueError for cell released, which reads its rows inside the window.
        """
        count = state.length - state.folded
        if self.config.memory.cell != "gated":
            raise ValueError("cell released cannot fold: its chunk is its window")
        if count <= 0:
            return state
        new = self._rows(state)  # (l, b, count, d)
        first, arrays = self.first_row(state.written), state.buffers.arrays
        bank = placed(state.bank, new, first) if self.bank_of else state.bank
        reads: list[tuple[mx.array, mx.array]] = []
        for i, j in self.bank_of.items():
            memory = self.blocks[i].memory
            assert isinstance(memory, GatedMemory)
            old = state.reads[j] or memory.keys_values(mx.zeros_like(bank[j]), told=self._told(mx.zeros_like(bank)))
            if self.config.memory.keys == "pair":
                some = min(count + 1, self.config.memory.slots)
                told = self._told(bank)  # (b, n, d)
                own = None if told is None else taken(told, first, some)  # (b, count + 1, d)
                made = memory.keys_values(taken(bank[j], first, some), taken(bank[j], (first - 1) % bank[j].shape[1], some), own)  # (b, h, count + 1, e or e + 1) each
            else:
                made = memory.keys_values(new[j], told=self._told(new))  # (b, h, count, e or e + 1) each
            reads.append((mx.contiguous(placed(old[0], made[0], first)), mx.contiguous(placed(old[1], made[1], first))))
            if f"read{j}" not in arrays:
                arrays[f"read{j}"] = mx.zeros_like(arrays[f"seen{j}"])  # (b, T, d)
        around = None if self.topics is None else self._around(self.topics, state, bank[-1], count)  # (b, n, d)
        state.buffers.folded = state.length
        state = state._replace(bank=bank, written=state.written + count, folded=state.length, reads=tuple(reads), around=around)
        evaluate(state, bank, *(x for kv in reads for x in kv), *([] if around is None else [around]))
        return state

    def _told(self, bank: mx.array) -> mx.array | None:
        """The topics' rows (b, n, d) of banks (l, b, n, d), where values are made of them too."""
        return bank[-1] if self.config.memory.values == "topics" else None

    def _around(self, topics: Topics, state: WindowState, bank: mx.array, count: int) -> mx.array:
        """What is near each row of the topics' bank (b, n, d) once `count` rows of the state are in it, lazy: made anew for them and those to either side."""
        n = bank.shape[1]
        if state.around is None:
            return topics.around(bank, 0, n)  # (b, n, d)
        first = (self.first_row(state.written) - topics.near) % n
        return placed(state.around, topics.around(bank, first, min(count + 2 * topics.near, n)), first)  # (b, n, d)

    def rows(self, state: WindowState, first: int, count: int) -> mx.array:
        """Rows first mod n .. of the bank as of the last fold, round its end: lazy (l, b, count, d)."""
        return taken(state.bank, self.first_row(first), count)

    def commit(self, state: WindowState) -> tuple[mx.array, int]:
        """The memory with everything of the window in it: the bank, lazy (l, b, n, d), and the tokens written. Nothing new changes nothing."""
        s, count = state.length, state.length - state.folded
        if count <= 0:
            return state.bank, state.written
        written = state.written + count
        if state.tokens is not None:
            if state.tokens.shape[1] != s:
                _, rows = self._layers(state.tokens[:, :s], state, 0, True)
                assert rows is not None
                return placed(state.bank, rows[None], 0), written
            assert state.after is not None
            return state.after, written
        if self.config.memory.cell == "released":
            return placed(state.bank, state.buffers.arrays["rows"][None, :, :s], 0), written
        if not self.bank_of:
            return state.bank, written
        return placed(state.bank, self._rows(state), self.first_row(state.written)), written

    def _rows(self, state: WindowState) -> mx.array:
        """What positions `folded` on write, lazy (l, b, s - folded, d), cell gated."""
        count, arrays, first = state.length - state.folded, state.buffers.arrays, self.first_row(state.written)
        made = []
        for i, j in self.bank_of.items():
            memory = self.blocks[i].memory
            assert isinstance(memory, GatedMemory)
            read = None if state.reads[j] is None else arrays[f"read{j}"][:, :count]
            made.append(memory.rewrite(arrays[f"seen{j}"][:, :count], read, taken(state.bank[j], first, count)))  # (b, count, d), (b, count, 1)
        new = [rows for rows, _ in made]
        if self.topics is not None:
            features = self.topics.features([arrays[f"values{i}"][:, :, state.folded : state.length] for i in self.topics.layers])  # (b, count, f)
            new.append(self.topics.rows(features, made[0][1], taken(state.bank[-1], first, count)))  # (b, count, d)
        return mx.stack(new) if new else mx.zeros((0, state.bank.shape[1], count, state.bank.shape[3]))

    def _layers(self, ids: mx.array, state: WindowState, past: int, alone: bool) -> tuple[mx.array, mx.array | None]:
        """All blocks over ids (b, t) at positions past onward: the last residual stream (b, t, d), and the released bank's rows (b, t, n).

        `alone`: the ids are the whole window and nothing is kept in its buffers.
        """
        t = ids.shape[1]
        cos, sin = self.cos[past : past + t], self.sin[past : past + t]  # (t, 1, e / 2)
        put = state.buffers.put
        known = min(max(state.folded - past, 0), t)  # carried tokens read the memory and are not written again
        place = past + known - state.folded
        x = self.embedded(ids)  # (b, t, d)
        rows = state.bank[0, :, past : past + t] if self.config.memory.cell == "released" else None  # (b, t, n)
        looks = None
        for i, (block, pieces) in enumerate(zip(self.blocks, self.step_pieces if t == 1 else self.pieces, strict=True)):
            q, k, v = pieces.project(x, cos, sin)  # (b, h, t, e), (b, k, t, e) twice
            if not alone:
                k, v = put(f"keys{i}", k, past, 2), put(f"values{i}", v, past, 2)  # (b, k, s, e)
            a = attend(q, k, v, self.cpu, window=block.attention.window)  # (b, h, t, e)
            if isinstance(block.memory, ReleasedMemory):
                assert rows is not None
                joined = block.attention.output(a)  # (b, t, d)

                def cache(k: mx.array, v: mx.array, i: int = i) -> tuple[mx.array, mx.array]:
                    return (k, v) if alone else (put(f"mkeys{i}", k, past, 2), put(f"mvalues{i}", v, past, 2))

                pooled = self._pooled(block.memory.lifted(joined), state, i, past, alone)
                rows = block.memory.rewrite(joined, rows, cache, pooled)
                x = block.join(x, joined + rows.astype(joined.dtype))
            elif block.memory is None or pieces.read is None:
                x = pieces.finish(x, a)
            else:
                j = self.bank_of[i]
                kv = state.reads[j]
                if block.memory.topics is not None:
                    looks = self._looks(block.memory.topics, state, past, t)  # (b, t, n) each
                if kv is None:
                    if known < t:
                        put(f"seen{j}", block.memory.seen(x)[:, known:], place, 1)
                    x = pieces.finish(x, a)
                else:
                    seen, add, read = pieces.read(x, *kv, *([] if looks is None else [looks[j]]))
                    if known < t:
                        put(f"seen{j}", seen[:, known:], place, 1)
                        put(f"read{j}", read[:, known:], place, 1)
                    x = pieces.finish(x, a, add)
        return x, rows

    @staticmethod
    def _looks(topics: Topics, state: WindowState, past: int, t: int) -> list[mx.array] | None:
        """What topics add to each memory's logits at t positions from `past` on, (b, t, n) each, by values that are kept already. None: nothing."""
        if state.around is None:
            return None
        kept = [state.buffers.arrays[f"values{i}"][:, :, max(0, past - topics.back + 1) : past + t] for i in topics.layers]  # (b, k, s, e) each
        looks = topics.looks(topics.features(kept), past, t, state.around)  # (b, t, n)
        return [topics.gain[j] * looks for j in range(topics.gain.size)]

    def _pooled(self, lifted: mx.array, state: WindowState, i: int, past: int, alone: bool) -> mx.array:
        """Mean of lifted (b, t, d) over the chunk (b, 1, d), or at each token over those up to it (b, t, d)."""
        if alone:
            return lifted.mean(axis=1, keepdims=True)  # (b, 1, d)
        sums = mx.cumsum(lifted, axis=1)  # (b, t, d)
        if past:
            sums = sums + state.buffers.arrays[f"sums{i}"][:, past - 1 : past]
        state.buffers.put(f"sums{i}", sums, past, 1)
        return sums / mx.arange(past + 1, past + 1 + lifted.shape[1], dtype=mx.float32)[:, None]  # (b, t, d)
