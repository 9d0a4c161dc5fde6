"""The figures that compare two arrays of numbers. Knows NumPy; no backend, no gate.

Everything is compared in float32 as it came, sums are taken in float64. Axes: r rows (positions), v vocabulary, l banks, b batch, n rows of
a bank, d width.
"""

from dataclasses import dataclass, field, fields

import numpy as np

SMALL = 1e-3
"""Root mean square below which a bank, or what a layer makes of it, counts as this large when a difference is divided by it. The norm that reads a bank adds
1e-6 to its mean square, so a smaller bank is not blown up on its way into the model: a difference in it weighs as much as in one of this size. Gates that
hardly open leave banks of 1e-10, where the difference of two roundings, or of two libraries' exp, is as large as the bank."""
CLEAR_GAP = 1e-3  # the two largest logits further apart than this: rounding must not exchange them
_ROWS = 64  # positions worked on at a time: bounds the float64 copies
_BINS = 1 << 16


@dataclass
class LogitStats:
    """Running comparison of logits, position by position; `add` takes any number of them. Nothing grows with the number of positions."""

    positions: int = 0
    values: int = 0
    largest: float = 0.0
    worst: int = -1  # index of the position with the largest difference, counted over all that were added
    sum_abs: float = 0.0
    sum_square: float = 0.0
    reference_square: float = 0.0
    same: int = 0
    clear: int = 0
    same_clear: int = 0
    sum_kl: float = 0.0
    bins: np.ndarray = field(default_factory=lambda: np.zeros(_BINS, dtype=np.int64))

    def add(self, reference: np.ndarray, other: np.ndarray) -> None:
        """Compare logits (r, v) of the same positions. Raises ValueError for shapes that differ."""
        if reference.shape != other.shape:
            raise ValueError(f"logits of shapes {reference.shape} and {other.shape} cannot be compared")
        for begin in range(0, len(reference), _ROWS):
            self._add(np.asarray(reference[begin : begin + _ROWS], np.float32), np.asarray(other[begin : begin + _ROWS], np.float32))

    def _add(self, a: np.ndarray, b: np.ndarray) -> None:
        with np.errstate(invalid="ignore", over="ignore"):
            diff = np.abs(b - a)  # (r, v)
            rows = diff.max(axis=1)  # (r,); NaN where there is one
            at = int(np.argmax(np.where(np.isnan(rows), np.inf, rows)))
            if not rows[at] <= self.largest or self.worst < 0:
                self.worst = self.positions + at
                self.largest = float(np.maximum(self.largest, rows[at]))
            self.sum_abs += float(diff.sum(dtype=np.float64))
            self.sum_square += float(np.square(diff, dtype=np.float64).sum())
            self.reference_square += float(np.square(a, dtype=np.float64).sum())
            self.sum_kl += float(kl_divergence(a, b).sum())
        # A float32's upper 16 bits order non-negative numbers, 128 steps to each doubling: a histogram good to 0.8%.
        self.bins += np.bincount(diff.view(np.uint32).ravel() >> 16, minlength=_BINS)[:_BINS]
        agree = a.argmax(axis=1) == np.where(np.isnan(b).any(axis=1), -1, b.argmax(axis=1))  # (r,)
        clear = top_gap(a) > CLEAR_GAP  # (r,)
        self.positions += len(a)
        self.values += a.size
        self.same += int(agree.sum())
        self.clear += int(clear.sum())
        self.same_clear += int((agree & clear).sum())

    def merged(self, other: "LogitStats") -> "LogitStats":
        """Both together; positions of `other` count after this one's."""
        out = LogitStats(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})
        with np.errstate(invalid="ignore"):
            out.largest = float(np.maximum(self.largest, other.largest))
        out.worst = self.worst if not other.positions or not other.largest > self.largest else self.positions + other.worst
        return out

    @property
    def mean(self) -> float:
        return self.sum_abs / max(1, self.values)

    @property
    def relative_l2(self) -> float:
        """|other - reference| / |reference| over all values."""
        return relative(self.sum_square, self.reference_square) ** 0.5

    @property
    def p99(self) -> float:
        """99% of the absolute differences are at most this; exact to 0.8%, rounded up. NaN if more than 1% are not finite."""
        want = int(np.ceil(0.99 * self.values))
        at = int(np.searchsorted(np.cumsum(self.bins), want))
        if not self.values or self.bins[0] >= want:
            return 0.0
        return float(np.array([((at + 1) << 16) - 1], dtype=np.uint32).view(np.float32)[0])

    @property
    def top1(self) -> float:
        """Share of positions with the same likeliest token."""
        return self.same / max(1, self.positions)

    @property
    def top1_clear(self) -> float:
        """The same, over positions where the reference's two largest logits are more than CLEAR_GAP apart. 1 if there are none."""
        return self.same_clear / self.clear if self.clear else 1.0

    @property
    def kl(self) -> float:
        """Mean over positions of KL(reference || other), in nats."""
        return self.sum_kl / max(1, self.positions)

    def figures(self) -> dict[str, float | int]:
        """Every figure by name."""
        return {
            "positions": self.positions, "max_abs": self.largest, "mean_abs": self.mean, "p99_abs": self.p99, "relative_l2": self.relative_l2,
            "top1": self.top1, "top1_clear": self.top1_clear, "clear_positions": self.clear, "kl": self.kl,
        }  # fmt: skip


def kl_divergence(reference: np.ndarray, other: np.ndarray) -> np.ndarray:
    """KL(softmax(reference) || softmax(other)) of each row, (r, v) -> (r,) float64, in nats; never below 0 but for rounding."""
    p, q = log_softmax(reference), log_softmax(other)  # (r, v)
    return np.asarray((np.exp(p) * (p - q)).sum(axis=1))


def log_softmax(x: np.ndarray) -> np.ndarray:
    """Log-probabilities of each row, (r, v) float64."""
    z = x.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    z -= np.log(np.exp(z).sum(axis=1, keepdims=True))
    return z


def top_gap(x: np.ndarray) -> np.ndarray:
    """Distance between the two largest values of each row, (r, v) -> (r,). 0 for a vocabulary of one."""
    if x.shape[1] < 2:
        return np.zeros(len(x))
    two = np.partition(x, x.shape[1] - 2, axis=1)[:, -2:]  # (r, 2)
    return np.asarray(two[:, 1] - two[:, 0])


def relative(difference: float, reference: float) -> float:
    """difference / reference; 0 when both are 0, infinite when only the reference is."""
    if reference == 0:
        return 0.0 if difference == 0 else float("inf")
    return difference / reference


def relative_l2(reference: np.ndarray, other: np.ndarray, small: float = 0.0) -> float:
    """|other - reference| / |reference| in float64; a reference whose root mean square is below `small` counts as if it were that. Infinite for shapes that
    differ, and where only the reference is 0 and `small` too."""
    if reference.shape != other.shape:
        return float("inf")
    a, b = reference.astype(np.float64), other.astype(np.float64)
    return relative(float(np.square(b - a).sum()), max(float(np.square(a).sum()), a.size * small**2)) ** 0.5


def bank_nmse(reference: np.ndarray, other: np.ndarray) -> list[float]:
    """Normalised mean square error of each bank of a state (l, b, n, d): |other - reference|^2 / |reference|^2, a bank below SMALL as if it were SMALL."""
    return [relative_l2(a, b, SMALL) ** 2 for a, b in zip(reference, other, strict=True)]
