"""`Backend.rows` on every backend: the rows of a fold, before it, right after it, and after the call that some make it in."""

import mlx_kit
import numpy as np
import pytest
from compare import assert_close

from lm2.runtime.backend import BackendOptions, open_backend

CHUNK, ROWS = 16, 32


@pytest.fixture(params=["torch", "static", "mlx", "onnx"])
def backend(request, tmp_path):
    pytest.importorskip({"mlx": "mlx.core", "onnx": "onnxruntime"}.get(request.param, "torch"))
    folder = mlx_kit.folder(tmp_path / "model", "gated", rows=2)
    if request.param == "onnx":
        from lm2.export.export import export_model
        from lm2.export.options import Options

        export_model(folder, tmp_path / "export", Options())
        folder = tmp_path / "export"
    name = "torch" if request.param == "static" else request.param
    opened = open_backend(name, folder, BackendOptions(device="cpu", threads=0 if name == "mlx" else 1))
    if request.param == "static":
        from lm2.runtime.backends.torch_backend import TorchBackend

        opened = TorchBackend(opened.model, static=True)
    return opened


def test_rows(backend):
    """Three folds, the last of them round the bank's end; a copy, which later folds leave alone."""
    ids = np.random.default_rng(1).integers(0, 61, 60)
    window, first, taken = backend.start(1, window=64), 0, []
    for size in (13, 10, 14):
        window = backend.extend(ids[first : first + size], window)[1]
        before = backend.rows(window, first, size)
        places = (first + np.arange(size)) % ROWS
        assert before.dtype == np.float32 and (before == backend.to_host(backend.memory(window))[:, :, places]).all()
        window = backend.fold(window)
        at_once = backend.rows(window, first, size)
        later = backend.rows(backend.extend(ids[first + size :][:1], window)[1], first, size)
        window = backend.rewind(window, first + size)
        bank = backend.to_host(backend.memory(window))
        assert_close("rows at once", at_once, bank[:, :, places], rtol=1e-5, atol=1e-6)
        assert_close("rows later", later, bank[:, :, places], rtol=1e-5, atol=1e-6)
        assert not np.allclose(before, later, atol=1e-3), "the control"
        taken.append((later, later.copy()))
        first += size
    assert all((now == then).all() for now, then in taken)
