"""Self-attention inside a window as nodes: ONNX Runtime's fused operator, or standard ones. Knows caches of fixed size and where a call stands.

Axes: b batch, t positions of a call, p positions before it, s = p + t, W positions of a window, h query heads, k key/value heads, e head width.
Caches (b, k, W, e) are written at p .. s - 1 and named past_* and present_*: a runtime may give both the same memory.
"""

from dataclasses import dataclass

import numpy as np

from ..models.config import LM2Config, RopeConfig
from .graph import CONTRIB, END, Graph
from .rotary import rotary_tables

FUSED_WIDTH = 8  # GroupQueryAttention takes heads of a multiple of this
FUSED_ROTARY = 16  # and turns them itself if of a multiple of this


@dataclass(frozen=True)
class Place:
    """Where a call stands: int64 values (1,) of a graph."""

    batch: str
    tokens: str
    past: str
    end: str


def write_at(g: Graph, buffer: str, update: str, position: str, axis: int, place: Place, ring: int = 0) -> str:
    """`buffer` with `update` at `position` .. along `axis`, everything else as it was. Batch is axis 0. May be computed in place.

    ring: length of an axis whose last place is followed by its first. TensorScatter from opset 24; before it, ScatterND over (b, ..., t) index tuples.
    """
    if g.opset >= 24:
        where = g.op("Expand", position, place.batch)  # (b,)
        return g.op("TensorScatter", buffer, update, where, axis=axis, mode="circular" if ring else "linear")
    grid = []
    for j in range(axis + 1):
        count = g.op("Squeeze", g.size(update, j))
        line = g.op("Range", g.constant(0), count, g.constant(1))
        line = g.op("Add", line, position) if j == axis else line
        line = g.op("Mod", line, g.constant(ring)) if j == axis and ring else line
        shape = [1] * (axis + 2)
        shape[j] = -1
        grid.append(g.op("Reshape", line, g.constant(shape)))
    counts = g.op("Shape", update, start=0, end=axis + 1)
    full = g.op("Concat", counts, g.constant([1]), axis=0)
    index = g.op("Concat", *(g.op("Expand", line, full) for line in grid), axis=-1)  # (b, ..., t, axis + 1)
    return g.op("ScatterND", buffer, index, update)


class WindowAttention:
    """Rotary tables and masks of one call, shared by all its layers. positions: the most a window may have.

    Layers with an attention window have the standard operator and a mask in every form: what GroupQueryAttention's local_window_size counts is not the
    same in every ONNX Runtime (1.23 sees one position more than 1.24).
    """

    def __init__(self, g: Graph, config: LM2Config, place: Place, dtype: str, fused: bool, positions: int):
        self.config, self.place, self.fused = config, place, fused
        self.tables: list[tuple[str, str]] = []
        windows = sorted({w for w in config.backbone.windows if w is not None})
        for rope, of in zip(config.ropes, ("", "local."), strict=False):
            self.tables.append(rotary_tables(g, rope, of, config.head_dim, positions, dtype))
        if fused:
            last = g.cast(g.op("Sub", place.end, g.constant([1])), "int32")
            self.lengths = g.op("Expand", last, place.batch, name="seqlens_k")  # (b,)
            self.total = g.op("Squeeze", g.cast(place.end, "int32"), name="total_sequence_length")
            if config.head_dim % FUSED_ROTARY == 0 and config.backbone.no_rope == () and not windows:
                return
        line = g.op("Range", g.constant(0), g.op("Squeeze", place.tokens), g.constant(1))  # (t,)
        self.positions = g.op("Add", line, place.past)  # (t,)
        shape = g.op("Concat", place.batch, place.tokens, axis=0)
        self.ids = g.op("Expand", self.positions, shape)  # (b, t)
        filled = g.op("Range", g.constant(0), g.op("Squeeze", place.end), g.constant(1))  # (s,)
        column = g.op("Unsqueeze", self.positions, g.constant([1]))  # (t, 1)
        self.seen: dict[int | None, tuple[str, str]] = {None: (g.constant([0]), g.op("LessOrEqual", filled, column))}  # (1,), (t, s)
        for window in windows:
            first = g.op("Max", g.op("Sub", place.past, g.constant([window - 1])), g.constant([0]))  # (1,)
            self.seen[window] = first, self.mask(g, g.slice(filled, first, g.constant([END]), 0), column, window)  # (1,), (t, s')

    def mask(self, g: Graph, reached: str, column: str, window: int) -> str:
        """Which positions `reached` (s',) each of `column` (t, 1) sees: bool (t, s')."""
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

    def turned(self, g: Graph, x: str, heads: int, turns: int = 0) -> str:
        """Rotary embedding of x (b, t, heads e), in one of the config's ways."""
        return g.op("RotaryEmbedding", x, *self.tables[turns], self.ids, num_heads=heads)

    def cached(
        self, g: Graph, q: str, key: str, value: str, past: tuple[str, str], h: int, k: int, e: int, window: int | None = None
    ) -> tuple[str, str, str]:
        """Attention of q (b, t, h e) to all positions so far, key and value (b, t, k e) stored first. As `self_attention`, without rotation."""
        if self.fused and window is None and e % FUSED_WIDTH == 0:
            return g.ops(  # type: ignore[return-value]
                "GroupQueryAttention", q, key, value, *past, self.lengths, self.total,
                outputs=3, domain=CONTRIB, name="rows_attention", num_heads=h, kv_num_heads=k,
            )  # fmt: skip
        keys = write_at(g, past[0], g.heads(key, k, e), self.place.past, 2, self.place)
        values = write_at(g, past[1], g.heads(value, k, e), self.place.past, 2, self.place)
        first, mask = self.seen[window]
        filled = (g.slice(x, first, self.place.end, 2) for x in (keys, values))  # (b, k, s or s', e) each
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
