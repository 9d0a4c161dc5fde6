"""Does the BLAS that MLX computes with on a Linux CPU multiply rightly? Knows products of integers, whose float sums are exact in any order.

MLX's Linux wheel brings a plain BLAS; a faster one is preloaded (docs/mlx.md), and an old OpenBLAS takes kernels that compute wrongly, or crash, on
processors newer than itself. Knows no model, and cannot tell a crash from within: who must survive one asks from another process.
"""

import ctypes
import os
import sys
from collections.abc import Iterator, Sequence

import mlx.core as mx
import numpy as np

REMEDY = "set OPENBLAS_CORETYPE=Haswell, or preload no BLAS (docs/mlx.md)"
# Rows, width and columns: vectors, every remainder of a kernel's tile, several blocks of each axis, and enough work for threads.
_ROWS, _WIDTHS, _COLUMNS = (
    (1, 2, 3, 4, 7, 8, 12, 15, 16, 17, 31, 33, 48, 63, 64, 65, 129),
    (1, 5, 32, 64, 97, 576),
    (1, 3, 8, 16, 29, 64, 67),
)
_LARGE = ((192, 640, 256), (512, 576, 640), (257, 2048, 131), (1, 576, 4099), (800, 64, 200))


def preloaded() -> bool:
    """Whether another BLAS than the wheel's was put before it."""
    if not sys.platform.startswith("linux"):
        return False
    if "blas" in os.environ.get("LD_PRELOAD", "").lower():
        return True
    return hasattr(ctypes.CDLL(None), "openblas_set_num_threads")


def wrong_product(quick: bool = False) -> str:
    """The first product that is not what integers give, in words; empty if all are right. A second's work for a fast BLAS, a tenth if `quick`."""
    rng = np.random.default_rng(0)
    for number, (m, k, n) in enumerate(_shapes(_ROWS[::4] if quick else _ROWS, _LARGE[:1] if quick else _LARGE)):
        big, small = (1000, 8) if number % 2 else (8, 1000)  # 8000 * 2048 < 2^24: sums are exact; 1000 has more digits than a bfloat16
        a, b = rng.integers(-big, big + 1, (m, k)), rng.integers(-small, small + 1, (k, n))
        v = rng.integers(1, 100, n)  # C v = A (B v) without multiplying A by B
        want = a @ (b @ v)
        for dtype, turned in ((mx.float32, "ab"), (mx.float32, "b"), (mx.float32, "a"), (mx.float32, ""), (mx.float64, "b")):
            got = _product(a, b, dtype, turned)
            if not (np.isfinite(got).all() and np.array_equal(got.astype(np.int64) @ v, want)):
                name = str(dtype).removeprefix("mlx.core.")
                return f"a {name} product of {m} x {k} by {k} x {n} is wrong"
    return ""


def _shapes(rows: Sequence[int], large: Sequence[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
    """Each number of rows beside several widths and columns."""
    for i, m in enumerate(rows):
        for j, k in enumerate(_WIDTHS):
            yield m, k, _COLUMNS[(i + j) % len(_COLUMNS)]
    yield from large


def _product(a: np.ndarray, b: np.ndarray, dtype: mx.Dtype, turned: str) -> np.ndarray:
    """a @ b (m, n) as MLX makes it on the CPU; the names in `turned` lie in memory column by column, as a linear layer's matrix does."""
    kind = np.float64 if dtype == mx.float64 else np.float32
    with mx.stream(mx.Device(mx.cpu)):
        x, y = (
            mx.array(np.ascontiguousarray(value.T.astype(kind))).T if name in turned else mx.array(value.astype(kind))
            for name, value in (("a", a), ("b", b))
        )
        out = mx.matmul(x, y)
        mx.eval(out)
        return np.array(out)
