"""One comparison for every numeric test: prints max and mean difference beside the gate."""

import numpy as np


def assert_close(name, got, want, atol, rtol=0.0):
    """|got - want| <= atol + rtol |want| everywhere; prints the measured figures."""
    got, want = np.asarray(got, dtype=np.float64), np.asarray(want, dtype=np.float64)
    assert got.shape == want.shape, f"{name}: shapes {got.shape} and {want.shape}"
    assert np.isfinite(got).all() and np.isfinite(want).all(), f"{name}: not finite"
    diff = np.abs(got - want)
    line = f"{name}: max {diff.max(initial=0):.3g} mean {diff.mean() if diff.size else 0:.3g} gate atol {atol:g} rtol {rtol:g}"
    print(line)
    assert (diff <= atol + rtol * np.abs(want)).all(), line


def relative_l2(got, want):
    got, want = np.asarray(got, dtype=np.float64), np.asarray(want, dtype=np.float64)
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def nmse(got, want):
    return relative_l2(got, want) ** 2
