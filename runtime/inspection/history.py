"""The life of every row of every bank, chunk by chunk (in a window fold by fold): gates, size, and whose words it still holds. Knows arrays and ids, no model and no file.

A row after a chunk is what the chunk added plus what its forget gate kept of the row before, so it is exactly the sum of what each chunk once
added, faded by the gates since. The share a chunk has in a row is the size of its summand beside those of all. Axes: l banks, n rows, d width,
c chunks, t positions.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

TOLD_APART = 32  # latest chunks whose summands are kept apart; older ones share one


class Written(NamedTuple):
    """One chunk. ids: its tokens; first: the row its first token writes; write, forget: mean gates (l, t); norm: of all rows after it (l, n)."""

    ids: tuple[int, ...]
    first: int
    write: np.ndarray
    forget: np.ndarray
    norm: np.ndarray


class Holder(NamedTuple):
    """Who a row is most of. chunk: counted from 0, or None for what was there before the first chunk or is too old to tell. share: 0 to 1."""

    chunk: int | None
    position: int
    share: float


def rms(bank: np.ndarray) -> np.ndarray:
    """Root mean square of each row of a bank (l, n, d): (l, n)."""
    return np.sqrt(np.square(bank, dtype=np.float64).mean(axis=-1))


class History:
    """Grows by one chunk at a time. layers: the model's layer of each bank; start: the bank before the first chunk, (l, n, d)."""

    def __init__(self, layers: Sequence[int], start: np.ndarray):
        self.layers = tuple(layers)
        self.before = rms(start)  # (l, n)
        self.chunks: list[Written] = []
        self._summands: dict[int | None, np.ndarray] = {None: start.astype(np.float32)}  # (l, n, d) each

    @property
    def rows(self) -> int:
        return self.before.shape[1]

    def add(self, ids: Sequence[int], first: int, write: np.ndarray, forget: np.ndarray, added: np.ndarray, kept: np.ndarray) -> None:
        """A chunk. write, forget: mean gates (l, t); added, kept: (l, t, d), for the rows from `first` on, round the bank's end."""
        here = (first + np.arange(len(ids))) % self.rows  # (t,)
        for summand in self._summands.values():
            summand[:, here] *= kept
        new = np.zeros_like(self._summands[None])
        new[:, here] = added
        number = len(self.chunks)
        self._summands[number] = new
        if number >= TOLD_APART:
            self._summands[None] += self._summands.pop(number - TOLD_APART)
        self.chunks.append(Written(tuple(ids), first, write, forget, rms(self.bank())))

    def bank(self) -> np.ndarray:
        """The bank as the sum of its parts, (l, n, d)."""
        return np.sum(list(self._summands.values()), axis=0)

    def shares(self) -> tuple[list[int | None], np.ndarray]:
        """Chunks (None first: before the first, or too old), and each one's share in every row, (chunks, l, n); 0 in a row of zeros."""
        sizes = np.stack([rms(part) for part in self._summands.values()])  # (chunks, l, n)
        total = sizes.sum(axis=0)
        return list(self._summands), np.divide(sizes, total, out=np.zeros_like(sizes), where=total > 0)

    def holders(self) -> list[list[Holder]]:
        """For every bank and row, who it is most of."""
        names, shares = self.shares()
        best = shares.argmax(axis=0)  # (l, n)
        out = []
        for bank in range(len(self.layers)):
            out.append([self._holder(names[best[bank, row]], row, float(shares[best[bank, row], bank, row])) for row in range(self.rows)])
        return out

    def gate(self, name: str) -> np.ndarray:
        """`write` or `forget` over time: (l, n, c), NaN where a chunk did not reach the row."""
        out = np.full((len(self.layers), self.rows, len(self.chunks)), np.nan)
        for c, written in enumerate(self.chunks):
            out[:, (written.first + np.arange(len(written.ids))) % self.rows, c] = getattr(written, name)
        return out

    def norms(self) -> np.ndarray:
        """Size of every row before the first chunk and after each: (l, n, c + 1)."""
        return np.stack([self.before, *(written.norm for written in self.chunks)], axis=-1)

    def _holder(self, chunk: int | None, row: int, share: float) -> Holder:
        return Holder(chunk, -1 if chunk is None else (row - self.chunks[chunk].first) % self.rows, share)
