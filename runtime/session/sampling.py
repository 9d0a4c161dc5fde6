"""Choosing the next token from logits. Knows NumPy, numbers and a seed; no model, no text.

Order, as in transformers: repetition penalty, temperature, top-k, top-p, min-p, one draw. (llama.cpp and mlx-lm apply
temperature last, so their top-p and min-p see the untempered distribution, and mlx-lm's top-k comes after those. With
temperature 1 and one filter all agree.) Axes: v vocabulary, c candidates.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ...models.errors import LM2Error, PromptError
from ...models.generation import check_setting, read_settings

SEED_MAX = (1 << 64) - 1


class LogitsError(LM2Error):
    """Logits from which no token can be chosen: NaN, +inf, nothing but -inf, or a wrong shape."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. Every field is checked by name (PromptError).

    temperature: >= 0; 0 takes the likeliest token. top_k: keep that many tokens, 0 for all. top_p: keep the fewest
    likeliest tokens that together have at least this probability, 1 for all. min_p: keep tokens at least this many
    times as likely as the likeliest. repetition_penalty: 0.01 to 100, 1 is off; logits of tokens seen among the last
    `repetition_window` are divided by it if positive, else multiplied (CTRL, arXiv 1909.05858), once however often
    the token was seen.
    """

    temperature: float = 0.7
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repetition_penalty: float = 1.0
    repetition_window: int = 64

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            check_setting(name, value)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def to_dict(self) -> dict[str, Any]:
        """The fields; `Sampling(**d)` reads them back."""
        return asdict(self)

    @classmethod
    def from_generation_config(cls, d: Mapping[str, Any]) -> "Sampling":
        """Settings from a Hugging Face generation_config.json: the fields of the same name, the defaults for what is
        missing or null.

        `do_sample: false` written out is temperature 0; a top_k below 0 is off. Raises PromptError naming the file's
        field.
        """
        if not isinstance(d, Mapping):
            raise PromptError(f"generation_config.json must be a JSON object, not {type(d).__name__}: restore it or remove it")
        try:
            return cls(**read_settings(d))
        except PromptError as error:
            raise PromptError(f"generation_config.json: {error}") from None


class Sampler:
    """Draws tokens. Draw number i depends on (seed, i) alone, so `Sampler(sampling, seed, draws)` goes on exactly
    where another stopped.

    `seed`: 0 to 2^64 - 1. `draws`: how many random numbers were used; a greedy choice uses none. Raises PromptError
    for a bad seed.
    """

    def __init__(self, sampling: Sampling, seed: int, draws: int = 0):
        _whole("seed", seed, f"a whole number from 0 to {SEED_MAX}", SEED_MAX)
        _whole("draws", draws, f"a whole number from 0 to {SEED_MAX}", SEED_MAX)
        self.sampling = sampling
        self.seed = seed
        self.draws = draws

    def sample(self, logits: np.ndarray, recent: Sequence[int] = ()) -> int:
        """Choose a token id. logits: (v,) float32, -inf for a token that must not come. recent: ids so far, newest
        last.

        Ties go to the lowest id. Raises LogitsError naming what to check when the logits are NaN, +inf or all -inf.
        """
        s = self.sampling
        z = check_logits(logits)  # (v,) float32
        window = recent[max(0, len(recent) - s.repetition_window) :]
        if s.repetition_penalty != 1.0 and len(window):
            z = penalize(z, window, s.repetition_penalty)
        if s.greedy:
            return int(np.argmax(z))
        ids, p = candidates(z, s)
        u = uniform(self.seed, self.draws)
        self.draws += 1
        mass = np.cumsum(p)
        at = min(int(np.searchsorted(mass, u * mass[-1], side="right")), int(np.searchsorted(mass, mass[-1], side="left")))
        return int(ids[at])


def check_logits(logits: np.ndarray) -> np.ndarray:
    """The logits (v,) as they are. Raises LogitsError unless they are floats, one row, without NaN and +inf, and not all -inf."""
    if logits.ndim != 1 or not logits.size or logits.dtype.kind != "f":
        raise LogitsError(f"logits are {logits.dtype} of shape {list(logits.shape)}, expected one row of floats: check the backend")
    top = logits.max()
    if np.isfinite(top):
        return logits
    remedy = "check that the weights are finite and the precision wide enough (--dtype float32)"
    for bad, name in ((np.isnan(logits), "NaN"), (logits == np.inf, "+inf")):
        if bad.any():
            raise LogitsError(
                f"the logits of {int(bad.sum())} of {logits.size} tokens are {name}, first token {int(bad.argmax())}: {remedy}"
            )
    raise LogitsError(f"the logits of all {logits.size} tokens are -inf, so no token is allowed: {remedy}")


def penalize(logits: np.ndarray, recent: Sequence[int], penalty: float) -> np.ndarray:
    """A copy of logits (v,) with the repetition penalty applied once to each id of `recent`. PromptError for an id that is not in v."""
    ids = np.unique(np.asarray(recent, dtype=np.int64))
    if ids[0] < 0 or ids[-1] >= logits.size:
        wrong = ids[0] if ids[0] < 0 else ids[-1]
        raise PromptError(f"recent token {wrong} is outside the vocabulary of {logits.size}: the tokenizer is not this model's")
    out = logits.astype(np.float64)
    seen = out[ids]
    out[ids] = np.where(seen > 0, seen / penalty, seen * penalty)
    return out


def candidates(logits: np.ndarray, s: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that may be drawn and their weights: ids ascending (c,) int64, float64 (c,) up to a common factor.

    logits: (v,) checked. The likeliest token always stays. Ascending ids, not descending weights: two backends whose
    logits differ in the last digit then draw the same token unless the random number falls on the border itself.
    """
    ids = _top_k(logits, s.top_k)
    z = logits[ids].astype(np.float64)
    w = _weights(z, z.max(), s.temperature)
    keep = w > 0
    if s.min_p > 0:
        keep &= w >= s.min_p
    if s.top_p < 1:
        total = w.sum()
        # Tokens this unlikely cannot add up to what top-p leaves out, so they need no sorting.
        keep &= w >= min(1.0, total * (1.0 - s.top_p) / w.size * (1.0 - 1e-9))
        ids, z, w = ids[keep], z[keep], w[keep]
        falling = np.sort(z)[::-1]
        likelier = np.concatenate(([0.0], np.cumsum(_weights(falling, falling[0], s.temperature))[:-1]))
        keep = _largest(z, max(1, int(np.searchsorted(likelier, s.top_p * total, side="left"))), falling)
    return ids[keep], w[keep]


def _weights(z: np.ndarray, top: float, temperature: float) -> np.ndarray:
    """Probabilities up to a common factor, (c,) float64: 1 where z is `top`."""
    with np.errstate(over="ignore", under="ignore"):
        return np.exp((z - top) / temperature)  # (c,)


def uniform(seed: int, draw: int) -> float:
    """Random number `draw` of `seed`, in [0, 1): the top 53 bits of Philox4x64-10's first word (Salmon et al., SC 2011).

    Key = seed, counter = draw + 1 (NumPy counts before it draws).
    """
    bits = int(np.random.Philox(key=seed, counter=draw).random_raw())
    return (bits >> 11) * 2.0**-53


def new_seed() -> int:
    """A fresh seed of 32 bits from the operating system."""
    return int.from_bytes(os.urandom(4), "little")


def log_probability(logits: np.ndarray, token: int) -> float:
    """Natural log of the probability the model itself gives `token`: of the plain logits (v,), before penalty, temperature and filters."""
    z = check_logits(logits).astype(np.float64)
    top = z.max()
    return float(z[token] - top - np.log(np.exp(z - top).sum()))


def _top_k(logits: np.ndarray, k: int) -> np.ndarray:
    """Ids of the k largest logits, ascending; among equals at the border the lowest ids."""
    if k == 0 or k >= logits.size:
        return np.arange(logits.size)
    ids = np.flatnonzero(logits >= np.partition(logits, logits.size - k)[logits.size - k])
    return ids[_largest(logits[ids], k, np.sort(logits[ids])[::-1])] if ids.size > k else ids


def _largest(x: np.ndarray, count: int, falling: np.ndarray) -> np.ndarray:
    """Mask of the `count` largest of x (c,), the first ones among equals. falling: x sorted, largest first."""
    border = falling[count - 1]
    keep: np.ndarray = x > border
    keep[np.flatnonzero(x == border)[: count - int(keep.sum())]] = True
    return keep


def _whole(name: str, x: Any, what: str, most: int | None = None) -> None:
    if isinstance(x, bool) or not isinstance(x, int) or x < 0 or (most is not None and x > most):
        raise PromptError(f"{name} {x!r} must be {what}")
