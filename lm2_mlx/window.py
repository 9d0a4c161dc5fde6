"""A window in progress in MLX: its buffers, its state, and rows of a ring. Knows arrays, no model.

Axes: b batch, s positions so far, W positions of a window, n rows, w their width, d hidden, h heads, e head width, l banks.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import mlx.core as mx


@dataclass
class Buffers:
    """What a window accumulates: arrays of constant size by name, filled up to the window's length.

    Shared by the states of one window and replaced as it grows: positions before a state's length never change, so an older state
    stays good for rewinding until something else is fed after it, or it is folded. Nobody else may hold the arrays, then MLX writes them in place.
    folded: where the newest state was folded last; `seen` and `read` of positions from there on begin at place 0.
    """

    arrays: dict[str, mx.array] = field(default_factory=dict)
    folded: int = 0

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


class WindowState(NamedTuple):
    """A window in progress. bank (l, b, n, d) float32 as of the last fold.

    written: tokens in the bank, ever; number i lies in row i mod n. Positions below `folded` are in the bank, by a fold or because the first
    `carried` of them were carried over; the first `opened` are an opening's.
    reads (cell gated): K and V of each memory's bank, (b, h, n, e), None for a bank of zeros. around: what is near each row of the topics' bank,
    (b, n, d) float32; None without topics, or for a bank of zeros. tokens (cell released, pooled over the chunk): the
    ids so far (b, s), with `after` the bank they lead to; such a window is computed anew in each call and has empty buffers.
    """

    bank: mx.array
    written: int
    length: int
    buffers: Buffers
    reads: tuple[tuple[mx.array, mx.array] | None, ...] = ()
    tokens: mx.array | None = None
    after: mx.array | None = None
    folded: int = 0
    carried: int = 0
    around: mx.array | None = None
    opened: int = 0

    @property
    def stale(self) -> bool:
        """Whether the buffers were folded since this state."""
        return self.folded != self.buffers.folded


def evaluate(window: WindowState, *more: mx.array) -> None:
    """Compute everything a call left undone, in one go."""
    mx.eval(*more, *window.buffers.arrays.values(), *([] if window.after is None else [window.after]))


def placed(whole: mx.array, new: mx.array, first: int) -> mx.array:
    """A new array with `new` (.., s, w) in rows `first` on of `whole` (.., n, w), round its end; the old one is unchanged."""
    n, s = whole.shape[-2], new.shape[-2]
    room = n - first
    if s > room:
        return placed(placed(whole, new[..., :room, :], first), new[..., room:, :], 0)
    return mx.concatenate([whole[..., :first, :], new, whole[..., first + s :, :]], axis=-2)


def taken(whole: mx.array, first: int, count: int) -> mx.array:
    """Rows `first` .. of whole (.., n, w), round its end: (.., count, w)."""
    n = whole.shape[-2]
    if first + count <= n:
        return whole[..., first : first + count, :]
    return mx.concatenate([whole[..., first:, :], whole[..., : first + count - n, :]], axis=-2)
