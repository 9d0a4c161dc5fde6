"""What a norm does to a projection on average, as a factor for each of its rows: for a memory that copies matrices and has no such norm.

Knows matrices and weights of norms. An input x = n * g, n of independent channels of variance 1, gives output r of matrix W a mean square of
sum_j (W_rj g_j)^2; an RMSNorm with weight w divides the outputs it spans by their root mean square and multiplies by w.
Axes: r rows, d columns, e those a norm spans.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from ..tensorfile import to_float32
from .source import SourceTensor


def energies(matrix: SourceTensor, inputs: np.ndarray) -> np.ndarray:
    """Mean square (r,) of each output for inputs of sizes `inputs` (d,); the matrix is read block by block."""
    return np.concatenate([np.square(values * inputs).sum(1) for values in _values(matrix)])


def factors(energy: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """What each output (r,) of mean square `energy` (r,) is multiplied by, on average, by norms with weight (e,) over each e of them."""
    size = np.sqrt(energy.reshape(-1, weight.size).mean(1, keepdims=True))  # (r / e, 1)
    return (weight / np.maximum(size, 1e-12)).reshape(-1)


def times_rows(matrix: SourceTensor, by: np.ndarray) -> SourceTensor:
    """The matrix with each row times its number of `by` (r,), float32 (float64 stays)."""
    return replace(matrix, dtype="F64" if matrix.dtype == "F64" else "F32", blocks=partial(_times_rows, matrix, by))


def _times_rows(matrix: SourceTensor, by: np.ndarray) -> Iterator[np.ndarray]:
    at = 0
    for values in _values(matrix):
        yield (values * by[at : at + len(values), None]).astype(values.dtype)
        at += len(values)


def _values(matrix: SourceTensor) -> Iterator[np.ndarray]:
    for block in matrix.blocks():
        yield block if matrix.dtype == "F64" else to_float32(block, matrix.dtype)
