"""The mlx backend's borders: what it refuses, in one line, and what it says of itself."""

import mlx_kit
import numpy as np
import pytest

from lm2.models.errors import BackendError, ModelFileError
from lm2.runtime.backend import BackendOptions, MemoryState, open_backend

mx = pytest.importorskip("mlx.core")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return mlx_kit.folder(tmp_path_factory.mktemp("m") / "m", "gated")


@pytest.mark.skipif(mx.is_available(mx.gpu), reason="there is a GPU here")
@pytest.mark.parametrize("device", ["gpu", "metal", "cuda", "cuda:1"])
def test_no_gpu(path, device):
    with pytest.raises(BackendError, match="not there"):
        open_backend("mlx", path, BackendOptions(device=device))


@pytest.mark.parametrize(
    "options, match", [(BackendOptions("tpu"), "tpu"), (BackendOptions("cuda:x"), "cuda:x"), (BackendOptions(dtype="float64"), "float64")]
)
def test_what_there_is_none_of(path, options, match):
    with pytest.raises(BackendError, match=match):
        open_backend("mlx", path, options)


@pytest.mark.parametrize("ids", [[], [61], [-1], list(range(17)), [0] * 10])
def test_tokens_that_do_not_fit(path, ids):
    """None at all, ids outside the vocabulary (MLX would read past the embedding), and more than the chunk holds."""
    b = mlx_kit.mlx(path)
    _, chunk = b.extend([1] * 7, b.start(1))
    with pytest.raises(BackendError):
        b.extend(ids, chunk)
    assert b.extend([1] * 9, chunk)[1].length == 16, "a refused call leaves the chunk as it was"


def test_a_foreign_memory_is_refused(path):
    b = mlx_kit.mlx(path)
    with pytest.raises(BackendError, match="does not fit"):
        b.from_host(np.zeros((2, 1, 8, 32), np.float32), 0)
    with pytest.raises(BackendError, match="does not fit"):
        b.start(1, MemoryState(mx.zeros((1, 1, 16, 32)), 0))
    with pytest.raises(BackendError, match="rewind"):
        b.rewind(b.start(1), 1)


def test_host_round_trip(path):
    b = mlx_kit.mlx(path, "bfloat16")
    bank = np.random.default_rng(0).standard_normal(b.config.bank_shape()).astype("<f4")
    assert np.array_equal(b.to_host(b.from_host(bank, 4)), bank)


@pytest.mark.parametrize("cell, pool", [("gated", "causal"), ("gated-topics", "causal"), ("released", "causal"), ("released", "chunk")])
def test_stated_bytes(tmp_path, cell, pool):
    """Description's bytes against what MLX really holds for a chunk, after a written bank."""
    fields = dict(width=64, vocab=61) if cell == "released" else dict(chunk=256)
    if cell == "gated-topics":
        cell, fields = "gated", dict(chunk=256, layers=4, memory_layers=(2, 3), topics=(0, 1))
    b = mlx_kit.mlx(mlx_kit.folder(tmp_path / "m", cell, pool=pool, **fields))
    state, ids = mlx_kit.written(b), mlx_kit.tokens(b, 1, b.config.memory.chunk)
    d = b.describe()
    assert b.to_host(state).nbytes == d.state_bytes
    mx.clear_cache()
    before = mx.get_active_memory()
    chunk = b.extend(ids, b.start(1, state))[1]
    held = mx.get_active_memory() - before
    assert chunk.length == ids.shape[1]
    print(cell, pool, held, d.window_bytes)
    assert 0.9 * d.window_bytes <= held <= 1.15 * d.window_bytes


def test_weights_that_are_not_finite(tmp_path):
    """Checked in the dtype computed in: 1e5 is finite in float32 and not in float16."""
    from tiny import CELLS

    from lm2.models.weights import random_model, save_folder

    model = random_model(CELLS["gated"], 1)
    model.layers[1].mlp.down_proj.weight.data[0, 0] = 1e5
    save_folder(model, tmp_path / "m")
    mlx_kit.mlx(tmp_path / "m")
    with pytest.raises(ModelFileError, match=r"layers\.1\.mlp\.down_proj.*float16"):
        mlx_kit.mlx(tmp_path / "m", "float16")
