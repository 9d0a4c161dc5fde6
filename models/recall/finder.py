"""The finder: which earlier messages a new one asks for, by the words of both. Knows token ids and arrays; no text, no session, no model.

Every token has a vector for when it asks and one for when it tells, made of the backbone's own embeddings by trained maps; neighbours are mixed in. A message
asks as well for another as its tokens, by their weights, find their best matches there (late interaction: Khattab and Zaharia 2020, arXiv 2004.12832).
A message that asks for nothing told is nearer to `nothing` than to any passage. The same ids give the same choice whatever computes the model.

Axes: v vocabulary, f width, q tokens of the message that asks, n tokens of all passages, p passages.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

TAPS = 3  # the token before, the token itself, the one after
WORTH = 0.1  # of a telling token's weight beside its match


def as_read(text: str) -> str:
    """A text as a finder's tokens are made of it, in training and in use: in small letters, after a blank, as words stand within a text."""
    return " " + text.strip().lower()


class Finder(NamedTuple):
    """asking, telling (v, f) int8 with steps asking_step, telling_step (v,); weight_asking (v,) above 0, weight_telling (v,): its logarithm times WORTH;
    prior (v,): how much a token speaks for a passage that has it; nothing (v,): how much one speaks for a message that asks for nothing told.
    mix (TAPS, f). sharpness: what scores are multiplied by before a softmax."""

    asking: np.ndarray
    telling: np.ndarray
    asking_step: np.ndarray
    telling_step: np.ndarray
    weight_asking: np.ndarray
    weight_telling: np.ndarray
    prior: np.ndarray
    nothing: np.ndarray
    mix: np.ndarray
    sharpness: float

    def scores(self, message: Sequence[int], passages: Sequence[Sequence[int]]) -> tuple[np.ndarray, float]:
        """How well `message` asks for each of `passages`, (p,) float32, and how well for nothing told; sharpness included. Raises ValueError for one
        without tokens."""
        if not message or not all(passages):
            raise ValueError("a message and a passage need at least one token")
        asked = np.asarray(message)
        lengths = [len(p) for p in passages]
        begins = np.concatenate(([0], np.cumsum(lengths)[:-1])).astype(np.int64)  # (p,)
        told = np.concatenate([np.asarray(p) for p in passages])  # (n,)
        own = self._vectors(self.asking, self.asking_step, asked, np.zeros(1, np.int64))  # (q, f)
        theirs = self._vectors(self.telling, self.telling_step, told, begins)  # (n, f)
        match = own @ theirs.T + self.weight_telling[told].astype(np.float32)  # (q, n)
        weight = self.weight_asking[asked].astype(np.float32)  # (q,)
        best = np.maximum.reduceat(match, begins, axis=1)  # (q, p)
        prior = np.add.reduceat(self.prior[told].astype(np.float32), begins) / np.asarray(lengths, np.float32)  # (p,)
        score = (weight[:, None] * best).sum(axis=0) / weight.sum() + prior  # (p,)
        return score * self.sharpness, float(self.nothing[asked].astype(np.float32).mean()) * self.sharpness

    def _vectors(self, table: np.ndarray, step: np.ndarray, ids: np.ndarray, begins: np.ndarray) -> np.ndarray:
        """Unit vectors (n, f) of tokens (n,), each mixed with its neighbours in the same text; texts begin at `begins`."""
        own = table[ids].astype(np.float32) * step[ids].astype(np.float32)[:, None]  # (n, f)
        before, after = np.zeros_like(own), np.zeros_like(own)
        before[1:], after[:-1] = own[:-1], own[1:]
        before[begins] = 0
        after[begins[1:] - 1] = 0
        mixed = before * self.mix[0] + own * self.mix[1] + after * self.mix[2]  # (n, f)
        return mixed / np.maximum(np.linalg.norm(mixed, axis=1, keepdims=True), 1e-12)  # (n, f)


def shapes(vocabulary: int, width: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The arrays of a finder by name: safetensors dtype and shape."""
    v, f = vocabulary, width
    each = dict.fromkeys(("asking_step", "telling_step", "weight_asking", "weight_telling", "prior", "nothing"), ("F16", (v,)))
    return {"asking": ("I8", (v, f)), "telling": ("I8", (v, f)), **each, "mix": ("F32", (TAPS, f))}
