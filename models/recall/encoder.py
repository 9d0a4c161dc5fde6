"""An encoder of sentences, in NumPy: a vector for every word piece of a text, in its sentence. Knows arrays and texts; no file, no session, no model.

A BERT (Devlin et al. 2018, arXiv 1810.04805: token, place and segment embeddings, layers of attention and MLP, each with a norm after it) whose matrices are
kept in 8 bits, a step for each row. Two texts are as near as the pieces of the first find their best matches in the second (Khattab and Zaharia 2020,
arXiv 2004.12832). It knows which words mean alike in a sentence, which a finder's vectors of single tokens do not; it is slower, so it looks only at the
passages that a finder likes.

Axes: v vocabulary, d width, m width of an MLP, n pieces of all texts, t pieces of one, h heads, e width of a head.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

EPS = 1e-12  # of a norm, as BERT has it
PIECES = 128  # of a text that are read
PART = 1024  # pieces computed at once, about
Arrays = Mapping[str, np.ndarray]


class Sizes(NamedTuple):
    """vocabulary v, positions: how many places have an embedding, width d, inner m, layers, heads."""

    vocabulary: int
    positions: int
    width: int
    inner: int
    layers: int
    heads: int


def shapes(s: Sizes) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The arrays of an encoder by name: safetensors dtype and shape. NAME.step is the step of each row of NAME."""
    d, m = s.width, s.inner
    found: dict[str, tuple[str, tuple[int, ...]]] = {}

    def matrix(name: str, rows: int, columns: int, bias: bool = True) -> None:
        found[name], found[f"{name}.step"] = ("I8", (rows, columns)), ("F32", (rows,))
        if bias:
            found[f"{name}.bias"] = ("F32", (rows,))

    def norm(name: str) -> None:
        found[name] = found[f"{name}.bias"] = ("F32", (d,))

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


class Encoder:
    """arrays: as `shapes` has them. tokenizer: a `tokenizers.Tokenizer` of these words that adds a first and a last piece to a text. weight: what nearness
    (-1 to 1) counts beside a finder's scores; among: how many passages, those that the finder likes best, it looks at. source: where it is from."""

    def __init__(self, sizes: Sizes, arrays: Arrays, tokenizer: Any, weight: float, among: int, source: Mapping[str, str]):
        self.sizes, self.arrays, self.tokenizer = sizes, arrays, tokenizer
        self.weight, self.among, self.source = weight, among, dict(source)
        self._wide: dict[str, np.ndarray] = {}

    def vectors(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Unit vectors (t, d) float32 of each text's pieces, its first and last left out; (0, d) for a text without any."""
        ids = [list(e.ids)[: min(PIECES, self.sizes.positions)] for e in map(self.tokenizer.encode, texts)]
        found: list[np.ndarray] = []
        part: list[list[int]] = []
        for n, own in enumerate(ids):
            part.append(own)
            if sum(map(len, part)) >= PART or n + 1 == len(ids):
                found += self._states(part)
                part = []
        return [_unit(x[1:-1]) for x in found]  # (t, d) each

    def _states(self, texts: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Last states (t, d) of texts of ids."""
        s = self.sizes
        flat = np.concatenate([np.asarray(t, np.int64) for t in texts])  # (n,)
        place = np.concatenate([np.arange(len(t)) for t in texts])  # (n,)
        ends = np.cumsum([len(t) for t in texts])
        x = self._norm("norm", self._rows("words", flat) + self._rows("places", place) + self.arrays["segment"])  # (n, d)
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
            self._wide[name] = (self.arrays[name].astype(np.float32) * self.arrays[f"{name}.step"][:, None]).T  # (columns, rows)
        out: np.ndarray = x @ self._wide[name] + self.arrays[f"{name}.bias"]  # (n, rows)
        return out

    def _norm(self, name: str, x: np.ndarray) -> np.ndarray:
        x = x - x.mean(axis=1, keepdims=True)
        x = x / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + EPS)
        out: np.ndarray = x * self.arrays[name] + self.arrays[f"{name}.bias"]  # (n, d)
        return out


def nearness(asking: np.ndarray, telling: np.ndarray) -> float:
    """How well the pieces asking (t, d) find their like in telling (t', d): the mean of their best matches, -1 to 1; 0 where there are none."""
    if not len(asking) or not len(telling):
        return 0.0
    return float((asking @ telling.T).max(axis=1).mean())


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


def _unit(x: np.ndarray) -> np.ndarray:
    out: np.ndarray = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return out
