"""Copies of windows: bit for bit what the window is, and nothing that is fed to one is in the other. torch and ONNX, cell gated; others have none."""

import numpy as np
import onnx_kit
import pytest
import tiny
from onnx_window_kit import W, tokens

from lm2.models.weights import random_model
from lm2.runtime.backends.torch_backend import TorchBackend

GATED = [name for name in tiny.CELLS if name.startswith("gated")]
OTHERS = [name for name in tiny.CELLS if name not in GATED]


@pytest.fixture(scope="module", params=["torch", "onnx"])
def opened(request, tmp_path_factory):
    """name -> a backend; made when first asked for."""
    root, made = tmp_path_factory.mktemp("copied"), {}

    def get(name):
        if name not in made:
            if request.param == "torch":
                made[name] = TorchBackend(random_model(tiny.CELLS[name], 3))
            else:
                pytest.importorskip("onnx")
                pytest.importorskip("onnxruntime")
                made[name] = onnx_kit.backend(onnx_kit.exported(root / name, name)[1])
        return made[name]

    return get


def written(b):
    return b.commit(b.extend(tokens(1, 9, 7), b.start(1, None, W))[1])


def goes_on(b, window, seed=2):
    """What a conversation comes to that goes on so: logits, with a fold between; the memory after it."""
    logits, window = b.extend(tokens(1, 5, seed), window, all_logits=True)
    window = b.fold(window)
    more, window = b.extend(tokens(1, 3, seed + 1), window, all_logits=True)
    return [np.array(logits), np.array(more), b.to_host(b.memory(window)), b.to_host(b.commit(window))]


@pytest.mark.parametrize("fed", [0, 1, 6, 11])
@pytest.mark.parametrize("heard", [False, True], ids=["new", "written"])
@pytest.mark.parametrize("name", GATED)
def test_a_copy_goes_on_as_the_window_does_and_neither_hears_the_other(opened, name, heard, fed):
    b = opened(name)
    window = b.start(1, written(b) if heard else None, W)
    if fed:
        window = b.extend(tokens(1, fed, 1), window)[1]
    if fed == 11:
        window = b.extend(tokens(1, 2, 9), b.fold(window))[1]
    first, second = b.copied(window), b.copied(window)
    other = goes_on(b, first, 5)  # before the others: it is not in them
    got, want = goes_on(b, second), goes_on(b, window)
    for one, same in zip(got, want, strict=True):
        assert np.array_equal(one, same)
    assert not np.array_equal(other[0], want[0])


@pytest.mark.parametrize("name", GATED[:1])
def test_copies_are_stepped_together(opened, name):
    b = opened(name)
    head = b.extend(tokens(1, 6, 1), b.start(1, None, W))[1]
    alone = [b.extend([n], b.extend(tokens(1, 2 + n, n), b.copied(head))[1])[0][0] for n in (1, 2, 3)]
    windows = [b.extend(tokens(1, 2 + n, n), b.copied(head))[1] for n in (1, 2, 3)]
    together, _ = b.step([1, 2, 3], windows)
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5 * np.abs(alone).max())


@pytest.mark.parametrize("name", OTHERS)
def test_cell_released_has_no_copies(opened, name):
    b = opened(name)
    assert b.copied(b.extend(tokens(1, 3, 1), b.start())[1]) is None
