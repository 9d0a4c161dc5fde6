"""Which operator library a session of the onnx backend is given: a CUDA session never one for the CPU, which would take the node to the host."""

import pytest

from lm2.export.ops import build
from lm2.runtime.backends.onnx_cache import find_library


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LM2_HOME", str(tmp_path))


def put(cuda):
    path = build._cached(cuda)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_a_cuda_session_gets_the_cuda_library_or_none():
    assert find_library("cuda") is None and find_library("cpu") is None, "the function body runs"
    cpu = put(False)
    assert find_library("cpu") == cpu and find_library("cuda") is None
    cuda = put(True)
    assert find_library("cuda") == cuda != cpu and find_library("cpu") == cpu
