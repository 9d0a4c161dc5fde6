"""Float matrices in the blocks that ai.lm2::QLinear multiplies by: d q + m, 32 numbers of 4 or 8 bits with d and m in float16 (ops/qlinear.py packs them).

A block that came from GGUF's Q4_1, Q4_0 or Q8_0 is found on its own grid again and kept in every bit. Any other gets the d and m with the
smallest error of a few that are tried (docs/decisions.md). Knows NumPy arrays; no graph, no model.

Axes: o rows (outputs), i columns (inputs), k blocks of a row, c = 32 columns of a block, n blocks of any row.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from .ops.qlinear import TILE, QMatrix, pack
from .options import BLOCK
from .weights import cut

SLACK = 0.01  # of a step: how far a value may lie from a grid and still be tried as one of its numbers
ENDS = (1.0, 0.93, 0.86, 0.77)  # where a 4-bit block's first and last value may lie, of the way from its middle to its ends
ROUNDS = 3  # of least squares for d and m with the numbers as they are, then for the numbers
STEPS = tuple(range(127, 119, -1))  # of an 8-bit block's largest magnitude

Grid = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Numbers (.., c), d (..) and m (..), float32 (those that wait: int8); d and m are float16 numbers."""


def to_qmatrix(weight: np.ndarray, bits: int) -> QMatrix:
    """weight (o, i), i padded with zeros to a multiple of 32. Raises PackError where float16 holds no block's d or m."""
    q, d, m, _ = (list(arrays) for arrays in zip(*to_qparts(lambda: (weight[rows] for rows in cut(*weight.shape)), bits), strict=True))
    return QMatrix(np.concatenate(q), np.concatenate(d), joined_minima(m, bits), len(weight))


def to_qparts(parts: Callable[[], Iterable[np.ndarray]], bits: int) -> Iterator[QMatrix]:
    """`to_qmatrix` of a matrix that comes some rows (o, i) at a time, each time that `parts` is called, as some whole tiles at a time (all but the last).

    8 bits have one minimum, 0, unless most blocks lie on a grid that needs their own (Q4_1's and Q4_0's): those are kept then. So they are read
    twice, and between the numbers of the whole matrix, a byte each, are in memory. 4 bits are read once, and nothing is kept.
    """
    if bits == 4:
        for rows in by_tiles(parts()):
            yield pack(*_rounded_to(_four, rows), bits)
        return
    made = [_rounded_to(_eight, rows) for rows in by_tiles(parts())]
    minima = sum(np.count_nonzero(m) for *_, m in made)
    if 0 < 2 * minima <= sum(m.size for *_, m in made):
        for grid, rows in zip(made, by_tiles(parts()), strict=True):
            _without_minima(grid, rows)
        minima = 0
    made.reverse()
    while made:
        q, d, m = made.pop()
        yield pack(q, d, m if minima else None, bits)


def by_tiles(parts: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The same rows (o, i), a multiple of 16 at a time; those that are left over come last."""
    left: np.ndarray | None = None
    for rows in parts:
        rows = rows if left is None else np.concatenate([left, rows])
        whole = len(rows) // TILE * TILE
        left = rows[whole:] if whole < len(rows) else None
        if whole:
            yield rows[:whole]
    if left is not None:
        yield left


def joined_minima(minima: list[np.ndarray], bits: int) -> np.ndarray:
    """The m of a whole QMatrix, of those of its parts."""
    return np.zeros((1, 1, 1), np.float16) if bits == 8 and not any(m.any() for m in minima) else np.concatenate(minima)


def _rounded_to(rule: Callable[[np.ndarray], Grid], rows: np.ndarray) -> Grid:
    """Rows (o, i) by a rule for blocks; the numbers, which are not above 127, in a byte each."""
    with np.errstate(invalid="ignore", over="ignore"):  # infinite d and m are refused by whoever packs them
        q, d, m = rule(blocks_of(rows))
        return q.astype(np.int8), d, m


def blocks_of(weight: np.ndarray) -> np.ndarray:
    """weight (o, i) in blocks (o, k, c), the last one of a row filled up with zeros."""
    rows, columns = weight.shape
    w = np.zeros((rows, -(-columns // BLOCK) * BLOCK), np.float32)
    w[:, :columns] = weight
    return w.reshape(rows, -1, BLOCK)


def _four(w: np.ndarray) -> Grid:
    """Blocks w (o, k, c) in 4 bits."""
    found, grid = on_grid(w)
    return grid if found.all() else _filled(grid, ~found, fitted(w[~found]))


def _eight(w: np.ndarray) -> Grid:
    """Blocks w (o, k, c) in 8 bits; with a minimum other than 0 only where that is exact and Q8_0's grid is not."""
    q, d = symmetric(w, STEPS[:1])
    m = np.zeros_like(d)
    left = (q * d[..., None] != w).any(-1)  # (o, k)
    if left.any():
        found, grid = on_grid(w[left])
        _filled(grid, ~found, (*symmetric(w[left][~found]), np.float32(0)))
        _filled((q, d, m), left, grid)
    return q, d, m


def _without_minima(grid: Grid, weight: np.ndarray) -> None:
    """8-bit blocks of weight (o, i) that were given a minimum, rounded again without."""
    q, d, m = grid
    had = m != 0  # (o, k)
    with np.errstate(invalid="ignore", over="ignore"):
        q[had], d[had] = symmetric(blocks_of(weight)[had])
    m[...] = 0


def symmetric(w: np.ndarray, steps: tuple[int, ...] = STEPS) -> tuple[np.ndarray, np.ndarray]:
    """Numbers (.., c), -127 to 127, and d (..) of blocks w (.., c) in 8 bits: the best d of those that give the largest magnitude one of so many
    `steps`. Exact for Q8_0, whose largest number is 127."""
    largest = np.abs(w).max(-1)  # (..)
    q, d, least = np.zeros_like(w), half(largest / steps[0]), np.full_like(largest, np.inf)
    for count in steps:
        scales = half(largest / count)
        numbers = np.clip(np.rint(divided(w, scales)), -127, 127)
        off = np.square(numbers * scales[..., None] - w).sum(-1)  # (..)
        better = off < least
        q[better], d[better], least[better] = numbers[better], scales[better], off[better]
    return q, d


def on_grid(w: np.ndarray) -> tuple[np.ndarray, Grid]:
    """Which blocks w (.., c) are d q + m exactly, with q from 0 to 15, and those grids (elsewhere: any numbers)."""
    low, high = w.min(-1), w.max(-1)  # (..)
    d, m = half((high - low) / 15), half(low)
    q = numbers_of(w, d, m)
    found = (valued(q, d, m) == w).all(-1)  # (..)
    rest = ~found & (np.count_nonzero(np.diff(np.sort(w, -1)), -1) < 16)
    if rest.any():
        also, grid = _searched(w[rest])
        _filled((q, d, m), rest, grid)
        found[rest] = also
    return found, (q, d, m)


def _searched(w: np.ndarray) -> tuple[np.ndarray, Grid]:
    """`on_grid` for blocks w (n, c) that do not use all of 0 to 15, or have a negative d, as Q4_0 has."""
    q, d, m = np.zeros_like(w), np.zeros(len(w), np.float32), np.zeros(len(w), np.float32)
    low, high = w.min(-1), w.max(-1)
    open_ = np.flatnonzero(high > low)  # blocks not found yet
    for first in range(15):  # the smallest number in use
        for used in range(15 - first, 0, -1):  # the largest less the smallest
            for base, sign in ((low, 1), (high, -1)):
                if not len(open_):
                    break
                scales = sign * half((high[open_] - low[open_]) / used)
                steps = divided(w[open_] - base[open_, None], scales)  # (n, c)
                numbers = np.rint(steps)
                near = (np.abs(steps - numbers) < SLACK).all(-1)
                if not near.any():
                    continue
                numbers = np.clip(numbers + first, 0, 15)
                least = half(base[open_] - first * scales)
                right = near & (valued(numbers, scales, least) == w[open_]).all(-1)
                at = open_[right]
                q[at], d[at], m[at] = numbers[right], scales[right], least[right]
                open_ = open_[~right]
    found = np.zeros(len(w), bool)
    found[high > low] = True
    found[open_] = False
    return found, (q, d, m)


def fitted(w: np.ndarray) -> Grid:
    """4-bit grids for blocks w (n, c) that are on none: the best of first and last values a little inside the block's, then least squares."""
    low, high = w.min(-1), w.max(-1)  # (n,)
    middle, reach = (low + high) / 2, (high - low) / 2
    best = _rounded(w, half((high - low) / 15), half(low))
    off = np.square(valued(*best) - w).sum(-1)  # (n,)
    for below in ENDS:
        for above in ENDS:
            start = middle - below * reach
            off = _better(w, best, off, half(reach * (above + below) / 15), half(start))
    for _ in range(ROUNDS):
        q, d, _ = best
        center, mean = q.mean(-1), w.mean(-1)  # (n,)
        spread = np.square(q).mean(-1) - center * center
        scales = np.divide((q * w).mean(-1) - center * mean, spread, out=d.copy(), where=spread > 1e-6)
        off = _better(w, best, off, half(scales), half(mean - scales * center))
    return best


def _better(w: np.ndarray, best: Grid, off: np.ndarray, d: np.ndarray, m: np.ndarray) -> np.ndarray:
    """Puts d and m (n,) and their numbers into `best` where the squared error is below `off` (n,); the errors as they are then."""
    made = _rounded(w, d, m)
    error = valued(*made)
    error -= w
    own = np.square(error, out=error).sum(-1)  # (n,)
    better = np.flatnonzero(own < off)
    for kept, new in zip(best, made, strict=True):
        kept[better] = new[better]
    return np.where(own < off, own, off)


def _rounded(w: np.ndarray, d: np.ndarray, m: np.ndarray) -> Grid:
    return numbers_of(w, d, m), d, m


def _filled(grid: Grid, where: np.ndarray, other: tuple[np.ndarray | np.float32, ...]) -> Grid:
    for kept, new in zip(grid, other, strict=True):
        kept[where] = new
    return grid


def half(x: np.ndarray) -> np.ndarray:
    """Rounded to float16, in float32; what float16 does not hold is infinite."""
    with np.errstate(over="ignore"):
        return x.astype(np.float16).astype(np.float32)


def divided(w: np.ndarray, d: np.ndarray) -> np.ndarray:
    """w (.., c) / d (..), 0 where d is 0."""
    return np.divide(w, d[..., None], out=np.zeros_like(w), where=d[..., None] != 0)


def numbers_of(w: np.ndarray, d: np.ndarray, m: np.ndarray) -> np.ndarray:
    """The nearest numbers (.., c), 0 to 15, to blocks w (.., c)."""
    q = w - m[..., None]
    if (d != 0).all():
        q /= d[..., None]
    else:
        q = divided(q, d)
    np.rint(q, out=q)
    return np.clip(q, 0, 15, out=q)


def valued(q: np.ndarray, d: np.ndarray, m: np.ndarray) -> np.ndarray:
    """d q + m (.., c), float32: rounded once, as a converter from GGUF rounds."""
    made = q * d[..., None]
    made += m[..., None]
    return made
