"""A model folder's tensors in float32, as an export wants them: matrices some rows at a time, so that none is in memory as a whole. Knows tensors by name.

Axes: o rows (outputs), i columns (inputs).
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..models.errors import ConvertError
from ..models.layout import ModelFolder
from ..models.tensorfile import TensorInfo, read_rows, read_tensor, to_float32

AT_ONCE = 1 << 18  # values of a matrix that are read at once


class Weights:
    """A model folder's tensors, float32. `progress` is told the bytes of each piece that was read."""

    def __init__(self, folder: ModelFolder, f: BinaryIO, progress: Callable[[int], None] = lambda count: None):
        self.folder, self.file, self.progress = folder, f, progress
        self.header = folder.header
        self.path: Path = folder.weights

    def __contains__(self, name: str) -> bool:
        return name in self.header.tensors

    def __getitem__(self, name: str) -> np.ndarray:
        """A tensor as a whole. Raises ConvertError for values that are not finite."""
        info = self.header.tensors[name]
        return self._finite(read_tensor(self.file, info), info)

    def shape(self, name: str) -> tuple[int, ...]:
        """What `self[name]` has."""
        return self.header.tensors[name].shape

    def parts(self, name: str) -> Iterator[np.ndarray]:
        """`self[name]` of a matrix (o, i), some rows at a time."""
        info = self.header.tensors[name]
        for rows in cut(*info.shape):
            yield self._finite(read_rows(self.file, info, rows.start, rows.stop), info)

    def rows(self, names: tuple[str, ...]) -> Iterator[np.ndarray]:
        """Matrices (o, i), by name without `.weight`, one below the other, some rows at a time."""
        for name in names:
            yield from self.parts(f"{name}.weight")

    def joint_shape(self, names: tuple[str, ...]) -> tuple[int, int]:
        """(o, i) of matrices, by name without `.weight`, one below the other."""
        shapes = [self.shape(f"{name}.weight") for name in names]
        return sum(shape[0] for shape in shapes), shapes[0][1]

    def largest(self, names: tuple[str, ...]) -> float:
        """The largest magnitude in matrices, by name without `.weight`."""
        return max(float(np.abs(part).max(initial=0.0)) for part in self.rows(names))

    def biases(self, names: tuple[str, ...]) -> np.ndarray | None:
        """Their biases side by side (o,), zeros for one that has none; None when none has."""
        if not any(f"{n}.bias" in self for n in names):
            return None
        rows = [(self.header.tensors[f"{n}.weight"].shape[0], f"{n}.bias") for n in names]
        return np.concatenate([self[bias] if bias in self else np.zeros(size, np.float32) for size, bias in rows])

    def loudness(self, name: str) -> np.ndarray | None:
        """Where the last block of matrix `name` is of a few columns (loud.py): what each counts."""
        return None

    def _finite(self, raw: np.ndarray, info: TensorInfo) -> np.ndarray:
        self.progress(raw.nbytes)
        array = to_float32(raw, info.dtype)
        if not np.isfinite(array).all():
            raise ConvertError(f"{self.path}: tensor {info.name} has values that are not finite: convert or pull the model again")
        return array


def cut(rows: int, columns: int) -> Iterator[slice]:
    """The rows of a matrix, so many at a time that they have at most AT_ONCE values (and one at least)."""
    some = max(1, AT_ONCE // max(1, columns))
    for start in range(0, rows, some):
        yield slice(start, min(start + some, rows))
