"""What was talked of around a row and what is talked of now, as nodes (models/topics.py is the reference). Knows one call, no folds.

Features are the values of a few low layers, which a window keeps anyway; they and all that is made of them here are float32 in every precision.

Axes: b batch, t positions of a call, s the last positions that what is talked of now is made of (where each sequence stands at a position of its own, always
as many before the call), n rows of a bank, m rows of it, p positions since the
last fold, d hidden, k key/value heads, e head width, f features, w what a position keeps.
"""

import numpy as np

from ..models.config import LM2Config
from .attention import Place
from .graph import END, Graph
from .linear import Matrices


class TopicNodes:
    """The topics of a model that has some, added to a graph."""

    def __init__(self, config: LM2Config, matrices: Matrices):
        m = config.memory
        self.matrices, self.layers, self.back, self.near = matrices, m.topics, m.topic_back, m.topic_around
        self.inner, self.d, self.e = config.num_key_value_heads * config.head_dim, config.hidden_size, config.head_dim
        self.width = len(m.topics) * self.inner
        self.part = f"model.layers.{m.layers[0]}.memory.topics"

    def looks(self, g: Graph, values: list[str], around: str, place: Place) -> tuple[str, str]:
        """How much of what was talked of lately is near each row, by the state `around` (b, n, d): logits (b, t, n) before the gains. And the features
        (b, t, f) of the call's positions. values (b, k, W, e): of the topics' layers, this call's among them."""
        features, shares, own = self._last_of_each(g, values, place) if place.each else self._last(g, values, place)
        lately = g.op("MatMul", shares, features, name="lately")  # (b, t, f)
        q = self.matrices.linear(g, lately, f"{self.part}.query", wide=True)  # (b, t, d)
        looks = g.op("MatMul", q, g.op("Transpose", around, perm=[0, 2, 1]), name="looks")  # (b, t, n)
        return looks, g.slice(features, own, g.constant([END]), 1)

    def _last(self, g: Graph, values: list[str], place: Place) -> tuple[str, str, str]:
        """The features (b, s, f) of the positions that those of a call look back to, their own included, what each counts (t, s), and which is the
        first of its own (1,)."""
        begin = g.op("Max", g.op("Sub", place.past, g.constant([self.back - 1])), g.constant([0]))  # (1,)
        kept = [g.joined(g.slice(v, begin, place.end, 2), self.inner) for v in values]  # (b, s, k e) each
        features = kept[0] if len(kept) == 1 else g.op("Concat", *kept, axis=-1)  # (b, s, f)
        features = features if self.matrices.dtype == "float32" else g.cast(features, "float32")
        return features, self._shares(g, begin, place), g.op("Sub", place.past, begin)

    def _last_of_each(self, g: Graph, values: list[str], place: Place) -> tuple[str, str, str]:
        """As `_last`, each sequence's own: shares are (b, t, s), and a place before a sequence's first position counts nothing."""
        k = self.inner // self.e
        line = g.op("Range", g.constant(1 - self.back), g.op("Squeeze", place.tokens), g.constant(1))  # (s,)
        other = g.op("Add", g.op("Unsqueeze", place.past, g.constant([1])), line)  # (b, s)
        window = g.op("Squeeze", g.size(values[0], 2))
        ends = g.op("Mul", g.op("Mul", g.op("Squeeze", place.batch), g.constant(k)), window)
        begins = g.reshape(g.op("Range", g.constant(0), ends, window), -1, k, 1)  # (b, k, 1)
        index = g.op("Add", begins, g.op("Unsqueeze", g.op("Max", other, g.constant([0])), g.constant([1])))  # (b, k, s)
        kept = [g.joined(g.op("Gather", g.reshape(v, -1, self.e), index, axis=0), self.inner) for v in values]  # (b, s, k e) each
        features = kept[0] if len(kept) == 1 else g.op("Concat", *kept, axis=-1)  # (b, s, f)
        at = g.op("Unsqueeze", g.slice(other, g.constant([self.back - 1]), g.constant([END]), 1), g.constant([2]))  # (b, t, 1)
        there = g.op("Unsqueeze", other, g.constant([1]))  # (b, 1, s)
        band = g.op("And", g.op("LessOrEqual", there, at), g.op("Greater", there, g.op("Sub", at, g.constant([self.back]))))
        share = g.cast(g.op("And", band, g.op("GreaterOrEqual", there, g.constant([0]))), "float32")  # (b, t, s)
        return features, g.op("Div", share, g.op("ReduceSum", share, g.constant([-1]), keepdims=1)), g.constant([self.back - 1])

    def _shares(self, g: Graph, begin: str, place: Place) -> str:
        """What each position from `begin` (1,) on counts in the mean of the last `back` ones at each position of the call: (t, s)."""
        first, past, end = (g.op("Squeeze", x) for x in (begin, place.past, place.end))
        at = g.op("Unsqueeze", g.op("Range", past, end, g.constant(1)), g.constant([1]))  # (t, 1)
        other = g.op("Range", first, end, g.constant(1))  # (s,)
        band = g.op("And", g.op("LessOrEqual", other, at), g.op("Greater", other, g.op("Sub", at, g.constant([self.back]))))  # (t, s)
        share = g.cast(band, "float32")  # (t, s)
        return g.op("Div", share, g.op("ReduceSum", share, g.constant([1]), keepdims=1))

    def bias(self, g: Graph, looks: str, memory: int) -> str:
        """What joins the logits of memory number `memory`, its gain in it, in the dtype of activations: (b, 1, t, n)."""
        gain = self.matrices.weights[f"{self.part}.gain"][memory]
        own = g.op("Unsqueeze", g.op("Mul", looks, g.constant(gain, "float32")), g.constant([1]))  # (b, 1, t, n)
        return own if self.matrices.dtype == "float32" else g.cast(own, self.matrices.dtype)

    def rewritten(self, g: Graph, writes: str, told: str, old: str) -> str:
        """The rows (b, p, d) of p positions, of what they kept (b, p, w), their features first, written as far as `told` (b, p, 1) says, and their old
        rows (b, p, d)."""
        features = g.slice(writes, g.constant([0]), g.constant([self.width]), 2)  # (b, p, f)
        keep = 1 / (1 + np.exp(-self.matrices.weights[f"{self.part}.keep"].astype(np.float64)))  # (d,)
        kept = g.op("Mul", old, g.store.add(f"{self.part}.keep", keep.astype(np.float32)))  # (b, p, d)
        own = g.op("Mul", told, self.matrices.linear(g, features, f"{self.part}.write", wide=True))  # (b, p, d)
        return g.op("Add", own, kept)

    def around(self, g: Graph, rows: str) -> str:
        """What is near each of m rows of the bank, divided by sqrt(d): (b, m, d). rows (b, m + 2 near, d): they, and those on either side of them."""
        pooled = g.op("AveragePool", g.op("Transpose", rows, perm=[0, 2, 1]), kernel_shape=[2 * self.near + 1])  # (b, d, m)
        return g.op("Mul", g.op("Transpose", pooled, perm=[0, 2, 1]), g.constant(self.d**-0.5, "float32"))
