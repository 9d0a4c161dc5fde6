"""An encoder of sentences: a vector for every word piece of a text, in its sentence. Knows texts and a BERT's layers; no file, no session, no model.

Two texts are as near as the pieces of the first find their best matches in the second (Khattab and Zaharia 2020, arXiv 2004.12832). It knows which words mean
alike in a sentence, which a finder's vectors of single tokens do not; it is slower, so it looks only at the passages that a finder likes.

Axes: d width, t pieces of a text.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .bert import Arrays, Bert, Sizes

PIECES = 128  # of a text that are read
PART = 1024  # pieces computed at once, about


class Encoder(Bert):
    """arrays: as `bert.shapes` has them. tokenizer: a `tokenizers.Tokenizer` of these words that adds a first and a last piece to a text. weight: what
    nearness (-1 to 1) counts beside a finder's scores; among: how many passages, those that the finder likes best, it looks at. source: where it is from."""

    def __init__(self, sizes: Sizes, arrays: Arrays, tokenizer: Any, weight: float, among: int, source: Mapping[str, str]):
        super().__init__(sizes, arrays)
        self.tokenizer, self.weight, self.among, self.source = tokenizer, weight, among, dict(source)

    def vectors(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Unit vectors (t, d) float32 of each text's pieces, its first and last left out; (0, d) for a text without any."""
        ids = [list(e.ids)[: min(PIECES, self.sizes.positions)] for e in map(self.tokenizer.encode, texts)]
        found: list[np.ndarray] = []
        part: list[list[int]] = []
        for n, own in enumerate(ids):
            part.append(own)
            if sum(map(len, part)) >= PART or n + 1 == len(ids):
                found += self.states(part)
                part = []
        return [_unit(x[1:-1]) for x in found]  # (t, d) each


def nearness(asking: np.ndarray, telling: np.ndarray) -> float:
    """How well the pieces asking (t, d) find their like in telling (t', d): the mean of their best matches, -1 to 1; 0 where there are none."""
    if not len(asking) or not len(telling):
        return 0.0
    return float((asking @ telling.T).max(axis=1).mean())


def _unit(x: np.ndarray) -> np.ndarray:
    out: np.ndarray = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return out
