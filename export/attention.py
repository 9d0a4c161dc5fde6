"""Self-attention inside a window as nodes: ai.lm2::ChunkAttention, ONNX Runtime's fused operator, or standard ones. Knows caches of fixed size and where a
call stands.

Axes: b batch, t positions of a call, p positions before it, s = p + t, W positions of a window, h query heads, k key/value heads, e head width.
Caches (b, k, W, e) are written at p .. s - 1 and named past_* and present_*: a runtime may give both the same memory.
"""

from dataclasses import dataclass

import numpy as np

from ..models.config import LM2Config, RopeConfig
from .graph import CONTRIB, END, Graph
from .ops import DOMAIN, chunk_attention
from .options import Options
from .rotary import rotary_tables

FUSED_WIDTH = 8  # GroupQueryAttention takes heads of a multiple of this
FUSED_ROTARY = 16  # and turns them itself if of a multiple of this


@dataclass(frozen=True)
class Place:
    """Where a call stands: int64 values (1,) of a graph. each: past and end are (b,), one for each sequence."""

    batch: str
    tokens: str
    past: str
    end: str
    each: bool = False

    def first(self, g: Graph, x: str) -> str:
        """The least (1,) of a number that each sequence has, or all share."""
        return g.op("ReduceMin", x, keepdims=1) if self.each else x

    def last(self, g: Graph, x: str) -> str:
        """The largest (1,) of such a number."""
        return g.op("ReduceMax", x, keepdims=1) if self.each else x


def write_at(g: Graph, buffer: str, update: str, position: str, axis: int, place: Place, ring: int = 0) -> str:
    """`buffer` with `update` at `position` .. along `axis`, everything else as it was. Batch is axis 0. May be computed in place. position: int64 (1,), or
    (b,) where each sequence has its own.

    ring: length of an axis whose last place is followed by its first. TensorScatter from opset 24; before it, ScatterND over (b, ..., t) index tuples.
    """
    if g.opset >= 24:
        where = position if place.each else g.op("Expand", position, place.batch)  # (b,)
        return g.op("TensorScatter", buffer, update, where, axis=axis, mode="circular" if ring else "linear")
    grid = []
    for j in range(axis + 1):
        count = g.op("Squeeze", g.size(update, j))
        line = g.op("Range", g.constant(0), count, g.constant(1))
        shape = [1] * (axis + 2)
        shape[j] = -1
        line = g.op("Reshape", line, g.constant(shape))
        if j == axis:
            line = g.op("Add", line, g.op("Reshape", position, g.constant([-1, *shape[1:j], 1, 1])))
            line = g.op("Mod", line, g.constant(ring)) if ring else line
        grid.append(line)
    counts = g.op("Shape", update, start=0, end=axis + 1)
    full = g.op("Concat", counts, g.constant([1]), axis=0)
    index = g.op("Concat", *(g.op("Expand", line, full) for line in grid), axis=-1)  # (b, ..., t, axis + 1)
    return g.op("ScatterND", buffer, index, update)


class WindowAttention:
    """Rotary tables and masks of one call, shared by all its layers. positions: the most a window may have. own: with ai.lm2::ChunkAttention; fused: with
    ONNX Runtime's operators; else with standard ones.

    Layers with an attention window have the standard operator and a mask in every form: what GroupQueryAttention's local_window_size counts is not the
    same in every ONNX Runtime (1.23 sees one position more than 1.24).
    """

    def __init__(self, g: Graph, config: LM2Config, place: Place, dtype: str, options: Options, positions: int, whole: bool = False):
        """whole: without caches, of all positions at once."""
        self.config, self.place = config, place
        self.own, self.fused = options.own_attention and not whole, not (options.own_attention or options.portable or whole)
        self.tables: list[tuple[str, str]] = []
        windows = sorted({w for w in config.backbone.windows if w is not None})
        for rope, of in zip(config.ropes, ("", "local."), strict=False):
            self.tables.append(rotary_tables(g, rope, of, config.head_dim, positions, dtype, options.tables))
        if self.own:
            nothing = g.constant(np.zeros((1, 0)), "float32")
            self.no_turn, self.no_bias = (nothing, nothing), g.constant(np.zeros((1, 1, 1, 1)), "float32")
            if not windows:
                return
        if self.fused:
            last = g.cast(g.op("Sub", place.end, g.constant([1])), "int32")
            self.lengths = g.op("Expand", last, place.batch, name="seqlens_k")  # (b,)
            self.total = g.op("Squeeze", g.cast(place.end, "int32"), name="total_sequence_length")
            if config.head_dim % FUSED_ROTARY == 0 and config.backbone.no_rope == () and not windows:
                return
        line = g.op("Range", g.constant(0), g.op("Squeeze", place.tokens), g.constant(1))  # (t,)
        past = g.op("Unsqueeze", place.past, g.constant([1])) if place.each else place.past
        self.positions = g.op("Add", line, past)  # (t,) or (b, t)
        shape = g.op("Concat", place.batch, place.tokens, axis=0)
        self.ids = self.positions if place.each else g.op("Expand", self.positions, shape)  # (b, t)
        self.end = place.last(g, place.end)  # (1,)
        filled = g.op("Range", g.constant(0), g.op("Squeeze", self.end), g.constant(1))  # (s,)
        column = g.op("Unsqueeze", self.positions, g.constant([1, 3] if place.each else [1]))  # (t, 1) or (b, 1, t, 1)
        self.seen: dict[int | None, tuple[str, str]] = {}
        if not self.own:
            self.seen[None] = g.constant([0]), g.op("LessOrEqual", filled, column)  # (1,), (t, s)
        for window in windows:
            first = g.op("Max", g.op("Sub", place.first(g, place.past), g.constant([window - 1])), g.constant([0]))  # (1,)
            self.seen[window] = first, self.mask(g, g.slice(filled, first, g.constant([END]), 0), column, window)  # (1,), (t, s') or (b, 1, t, s')

    def mask(self, g: Graph, reached: str, column: str, window: int) -> str:
        """Which positions `reached` (s',) each of `column` (t, 1) or (b, 1, t, 1) sees: bool (t, s') or (b, 1, t, s')."""
        return g.op("And", g.op("LessOrEqual", reached, column), g.op("Less", g.op("Sub", column, reached), g.constant([window])))

    def self_attention(
        self, g: Graph, qkv: tuple[str, ...], past: tuple[str, str], turns: int | None = 0, window: int | None = None
    ) -> tuple[str, str, str]:
        """qkv: one value (b, t, (h + 2k) e) fresh from its projection, or three; caches (b, k, W, e). turns: in which of the config's ways
        queries and keys turn, None: not. window: how many positions a token sees at most, one of the config's; None: all.

        Returns (b, t, h e) and the caches with this call's keys and values.
        """
        c = self.config
        h, k, e = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        if self.own and window is None:
            return self.chunked(g, qkv, past, self.no_turn if turns is None else self.tables[turns], h)
        if self.fused and window is None and turns is not None and e % FUSED_ROTARY == 0:
            given = qkv if len(qkv) == 3 else (*qkv, "", "")
            return g.ops(  # type: ignore[return-value]
                "GroupQueryAttention", *given, *past, self.lengths, self.total, *self.tables[turns],
                outputs=3, domain=CONTRIB, name="attention", num_heads=h, kv_num_heads=k, do_rotary=1,
            )  # fmt: skip
        q, key, value = qkv if len(qkv) == 3 else g.split(qkv[0], [h * e, k * e, k * e])
        if turns is not None:
            q, key = (self.turned(g, x, n, turns) for x, n in ((q, h), (key, k)))
        return self.cached(g, q, key, value, past, h, k, e, window)

    def chunked(self, g: Graph, qkv: tuple[str, ...], past: tuple[str, str], tables: tuple[str, str], heads: int) -> tuple[str, str, str]:
        """ai.lm2::ChunkAttention of one value (b, t, (h + 2k) e), or of three, with the caches `past`; tables: what queries and keys turn by."""
        x = qkv[0] if len(qkv) == 1 else g.op("Concat", *qkv, axis=-1)
        return g.ops(  # type: ignore[return-value]
            chunk_attention.NAME, x, *past, self.place.past, *tables, self.no_bias,
            outputs=3, domain=DOMAIN, name="attention", heads=heads, scale=0.0,
        )  # fmt: skip

    def turned(self, g: Graph, x: str, heads: int, turns: int = 0) -> str:
        """Rotary embedding of x (b, t, heads e), in one of the config's ways."""
        return g.op("RotaryEmbedding", x, *self.tables[turns], self.ids, num_heads=heads)

    def cached(
        self, g: Graph, q: str, key: str, value: str, past: tuple[str, str], h: int, k: int, e: int, window: int | None = None
    ) -> tuple[str, str, str]:
        """Attention of q (b, t, h e) to all positions so far, key and value (b, t, k e) stored first. As `self_attention`, without rotation."""
        if self.own and window is None:
            return self.chunked(g, (q, key, value), past, self.no_turn, h)
        if self.fused and window is None and e % FUSED_WIDTH == 0:
            return g.ops(  # type: ignore[return-value]
                "GroupQueryAttention", q, key, value, *past, self.lengths, self.total,
                outputs=3, domain=CONTRIB, name="rows_attention", num_heads=h, kv_num_heads=k,
            )  # fmt: skip
        keys = write_at(g, past[0], g.heads(key, k, e), self.place.past, 2, self.place)
        values = write_at(g, past[1], g.heads(value, k, e), self.place.past, 2, self.place)
        first, mask = self.seen[window]
        filled = (g.slice(x, first, self.end, 2) for x in (keys, values))  # (b, k, s or s', e) each
        a = g.op("Attention", g.heads(q, h, e), *filled, mask, name="attention")  # (b, h, t, e)
        return g.joined(a, h * e), keys, values


def whole_attention(g: Graph, q: str, key: str, value: str, h: int, k: int, e: int, mask: str = "") -> str:
    """Causal attention of a whole chunk without caches: q (b, s, h e), key and value (b, s, k e) -> (b, s, h e). mask (s, s): what is seen instead."""
    given = [g.heads(q, h, e), g.heads(key, k, e), g.heads(value, k, e)]
    a = g.op("Attention", *given, mask, name="attention") if mask else g.op("Attention", *given, is_causal=1, name="attention")
    return g.joined(a, h * e)


def rope_tables(rope: RopeConfig, head_dim: int, positions: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines (positions, e / 2) of the rotary embedding, angles in float32 as the reference computes them."""
    inverse = np.array(rope.inverse_frequencies(head_dim), np.float32)
    angles = np.outer(np.arange(positions, dtype=np.float32), inverse)
    size = np.array(rope.amplitudes(head_dim), np.float32)
    return np.cos(angles) * size, np.sin(angles) * size
