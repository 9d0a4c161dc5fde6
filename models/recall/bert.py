"""A BERT's layers in NumPy, matrices in 8 bits with a step for each row. Knows arrays of ids; no text, no file, no session.

Devlin et al. 2018, arXiv 1810.04805: token, place and segment embeddings, layers of attention and MLP, each with a norm after it.

Axes: v vocabulary, d width, m width of an MLP, n pieces of all texts, t pieces of one, h heads, e width of a head.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

EPS = 1e-12  # of a norm, as BERT has it
Arrays = Mapping[str, np.ndarray]


class Sizes(NamedTuple):
    """vocabulary v, positions: how many places have an embedding, width d, inner m, layers, heads."""

    vocabulary: int
    positions: int
    width: int
    inner: int
    layers: int
    heads: int


def shapes(s: Sizes, words: bool = True) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The arrays by name: safetensors dtype and shape. NAME.step is the step of each row of NAME. words: with those of the vocabulary."""
    d, m = s.width, s.inner
    found: dict[str, tuple[str, tuple[int, ...]]] = {}

    def matrix(name: str, rows: int, columns: int, bias: bool = True) -> None:
        found[name], found[f"{name}.step"] = ("I8", (rows, columns)), ("F32", (rows,))
        if bias:
            found[f"{name}.bias"] = ("F32", (rows,))

    def norm(name: str) -> None:
        found[name] = found[f"{name}.bias"] = ("F32", (d,))

    if words:
        matrix("words", s.vocabulary, d, bias=False)
    matrix("places", s.positions, d, bias=False)
    found["segment"] = ("F32", (d,))
    norm("norm")
    for i in range(s.layers):
        matrix(f"{i}.qkv", 3 * d, d)
        matrix(f"{i}.out", d, d)
        norm(f"{i}.attention_norm")
        matrix(f"{i}.up", m, d)
        matrix(f"{i}.down", d, m)
        norm(f"{i}.mlp_norm")
    return found


class Bert:
    """arrays: as `shapes` has them."""

    def __init__(self, sizes: Sizes, arrays: Arrays):
        self.sizes, self.arrays = sizes, arrays
        self._wide: dict[str, np.ndarray] = {}

    def wide(self, name: str) -> np.ndarray:
        """An array as float32, its steps in it."""
        array = self.arrays[name]
        return array if f"{name}.step" not in self.arrays else array.astype(np.float32) * self.arrays[f"{name}.step"][:, None]

    def states(self, texts: Sequence[Sequence[int]], segments: Sequence[np.ndarray] | None = None) -> list[np.ndarray]:
        """Last states (t, d) of texts of ids. segments: of each text what is added to its pieces, (t, d); by default the array `segment`."""
        s = self.sizes
        flat = np.concatenate([np.asarray(t, np.int64) for t in texts])  # (n,)
        place = np.concatenate([np.arange(len(t)) for t in texts])  # (n,)
        ends = np.cumsum([len(t) for t in texts])
        segment = self.arrays["segment"] if segments is None else np.concatenate(list(segments))
        x = self._norm("norm", self._rows("words", flat) + self._rows("places", place) + segment)  # (n, d)
        for i in range(s.layers):
            qkv = self._product(f"{i}.qkv", x).reshape(len(x), 3, s.heads, -1)  # (n, 3, h, e)
            seen = np.concatenate([_attention(qkv[a:b]) for a, b in zip(ends - [len(t) for t in texts], ends, strict=True)])  # (n, d)
            x = self._norm(f"{i}.attention_norm", x + self._product(f"{i}.out", seen))  # (n, d)
            x = self._norm(f"{i}.mlp_norm", x + self._product(f"{i}.down", gelu(self._product(f"{i}.up", x))))  # (n, d)
        return np.split(x, ends[:-1])

    def _rows(self, name: str, rows: np.ndarray) -> np.ndarray:
        return self.arrays[name][rows].astype(np.float32) * self.arrays[f"{name}.step"][rows, None]  # (n, d)

    def _product(self, name: str, x: np.ndarray) -> np.ndarray:
        if name not in self._wide:
            self._wide[name] = self.wide(name).T  # (columns, rows)
        out: np.ndarray = x @ self._wide[name] + self.arrays[f"{name}.bias"]  # (n, rows)
        return out

    def _norm(self, name: str, x: np.ndarray) -> np.ndarray:
        x = x - x.mean(axis=1, keepdims=True)
        x = x / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + EPS)
        out: np.ndarray = x * self.arrays[name] + self.arrays[f"{name}.bias"]  # (n, d)
        return out


def rounded(want: Mapping[str, tuple[str, tuple[int, ...]]], wide: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every array of `want` (as `shapes` has them), matrices in 8 bits. Raises ValueError for another shape."""
    out: dict[str, np.ndarray] = {}
    for name, (dtype, shape) in want.items():
        if name.endswith(".step"):
            continue
        if wide[name].shape != shape:
            raise ValueError(f"tensor {name} is {list(wide[name].shape)}, the config calls for {list(shape)}")
        out[name] = wide[name]
        if dtype == "I8":
            step = (np.abs(wide[name]).max(axis=1) / 127).clip(1e-12).astype(np.float32)  # (rows,)
            out[name], out[f"{name}.step"] = np.rint(wide[name] / step[:, None]).clip(-127, 127).astype(np.int8), step
    return out


def gelu(x: np.ndarray) -> np.ndarray:
    """x times the normal distribution up to x (Hendrycks and Gimpel 2016, arXiv 1606.08415), within 4e-7: erf by Abramowitz and Stegun 7.1.26."""
    y = np.abs(x) * np.float32(1 / math.sqrt(2))
    k = 1 / (1 + np.float32(0.3275911) * y)
    series = np.zeros_like(k)
    for c in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series = (series + np.float32(c)) * k
    erf = np.copysign(1 - series * np.exp(-y * y), x)
    out: np.ndarray = np.float32(0.5) * x * (1 + erf)
    return out


def _attention(qkv: np.ndarray) -> np.ndarray:
    """What each piece of one text sees, (t, d), of queries, keys and values (t, 3, h, e)."""
    q, k, v = (qkv[:, j].transpose(1, 0, 2) for j in range(3))  # (h, t, e) each
    scores = q @ k.transpose(0, 2, 1) / np.float32(math.sqrt(q.shape[-1]))  # (h, t, t)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    seen = (weights / weights.sum(axis=-1, keepdims=True)) @ v  # (h, t, e)
    out: np.ndarray = seen.transpose(1, 0, 2).reshape(len(qkv), -1)  # (t, d)
    return out
