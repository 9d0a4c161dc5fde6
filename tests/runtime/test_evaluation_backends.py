"""Streams of unequal chunks on every backend: the same banks and the same greedy answers as the reference."""

import mlx_kit as kit
import numpy as np
import onnx_kit
import pytest
import tiny
from compare import assert_close

from lm2.runtime.evaluation.streams import Reader

LENGTHS = [[16, 5, 9], [3], [16, 16, 1, 7], [8, 8]]


def run(backend):
    rng = np.random.default_rng(0)
    streams = [tuple(tuple(rng.integers(0, 61, n).tolist()) for n in lengths) for lengths in LENGTHS]
    questions = [tuple(rng.integers(0, 61, n).tolist()) for n in (6, 6, 4, 6)]
    reader = Reader(backend, (), 5)
    banks = reader.read(streams)
    losses, after = reader.score(np.concatenate(banks[:2], axis=1), 3, rng.integers(0, 61, (2, 16)))
    return np.concatenate(banks, axis=1), reader.ask(banks, questions), losses, after


def compare(got, want):
    for name, a, b in zip(("banks", "losses", "bank after"), (got[0], got[2], got[3]), (want[0], want[2], want[3]), strict=True):
        assert_close(name, a, b, 5e-5, 1e-4)
    assert got[1] == want[1]


@pytest.mark.parametrize("name", list(tiny.CELLS))
def test_mlx(tmp_path, name):
    pytest.importorskip("mlx.core")
    folder = kit.folder(tmp_path / "m", name)
    compare(run(kit.mlx(folder)), run(kit.torch(folder)))


@pytest.mark.parametrize("name", list(tiny.CELLS))
def test_onnx(tmp_path, name):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    source, exported = onnx_kit.exported(tmp_path, name)
    compare(run(onnx_kit.backend(exported)), run(kit.torch(source)))
