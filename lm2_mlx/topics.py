"""Topics in MLX: what was talked of around a row, and what is talked of now (models/topics.py is the reference). Knows one call.

Axes: b batch, t positions of a call, s positions so far, n rows, d hidden, f features, l memories.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from .linear import Dense


def sliding(x: mx.array, width: int) -> mx.array:
    """Sums of `width` neighbours: x (b, s, d) -> (b, s - width + 1, d)."""
    count = x.shape[1] - width + 1
    if count == 1:
        return x.sum(axis=1, keepdims=True)  # (b, 1, d)
    total = x[:, :count]  # (b, count, d)
    for o in range(1, width):
        total = total + x[:, o : o + count]
    return total


@dataclass
class Topics:
    """row = g (W_write f + b_write) + sigmoid(keep) * old row, g the mean of the first memory's input gate;
    logits of memory j get gain_j (W_query mean of f + b_query) . (mean of rows) / sqrt(d).

    All float32. layers: whose values features are made of. back: positions that are what is talked of now; near: rows to either side that are near one.
    """

    layers: tuple[int, ...]
    back: int
    near: int
    write: Dense
    query: Dense
    keep: mx.array  # (d,)
    gain: mx.array  # (l,)

    @staticmethod
    def features(values: Sequence[mx.array]) -> mx.array:
        """Features (b, s, f) float32 of positions whose values in the topics' layers are (b, k, s, e) each."""
        parts = [v.swapaxes(1, 2).reshape(v.shape[0], v.shape[2], -1) for v in values]  # (b, s, k e) each
        return mx.concatenate(parts, axis=-1).astype(mx.float32)  # (b, s, f)

    def rows(self, features: mx.array, told: mx.array, old: mx.array) -> mx.array:
        """New rows (b, t, d) of tokens with these features (b, t, f), written as far as `told` (b, t, 1) says, over the old ones (b, t, d)."""
        return told * self.write(features) + mx.sigmoid(self.keep) * old  # (b, t, d)

    def around(self, bank: mx.array, first: int, count: int) -> mx.array:
        """What is near rows `first` mod n .. of a bank (b, n, d), round its end: means over the ring, (b, count, d)."""
        n, width = bank.shape[1], 2 * self.near + 1
        ring = bank[:, ((first - self.near) % n + mx.arange(count + width - 1)) % n]  # (b, count + 2 near, d)
        return sliding(ring, width) / width  # (b, count, d)

    def looks(self, features: mx.array, past: int, t: int, around: mx.array) -> mx.array:
        """How much of what is talked of at t positions from `past` on is near each row, by what `around` (b, n, d) says: logits (b, t, n) before the gains.

        features (b, s, f): of the last positions up to past + t, as many of `back` - 1 + t as there are.
        """
        b, s, f = features.shape
        missing = self.back - 1 + t - s
        if missing:
            features = mx.concatenate([mx.zeros((b, missing, f)), features], axis=1)  # (b, back - 1 + t, f)
        counts = mx.minimum(mx.arange(past + 1, past + 1 + t), self.back)  # (t,)
        lately = sliding(features, self.back) / counts[:, None]  # (b, t, f)
        return (self.query(lately) * around.shape[-1] ** -0.5) @ around.swapaxes(1, 2)  # (b, t, n)
