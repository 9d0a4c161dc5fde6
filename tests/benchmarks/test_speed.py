"""No speed is reported where what was timed is wrong."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"


@pytest.fixture
def common():
    spec = importlib.util.spec_from_file_location("benchmarks_common", BENCHMARKS / "common.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_wrong_product_ends_the_benchmark(common):
    right = np.ones((3, 4), np.float32)
    common.require_close("the product", right * np.float32(1 + 1e-6), right, 1e-5)
    for wrong in (right * 1.01, right * np.nan, right[:2]):
        with pytest.raises(SystemExit, match="no speed is reported: the product is off by"):
            common.require_close("the product", wrong, right, 1e-5)


@pytest.mark.parametrize("name", ["attention", "op_speed", "qlinear", "torch_speed", "linear_layouts"])
def test_it_is_asked_before_anything_is_timed(name):
    """What these scripts check stands before their first clock (the functions with the clocks are called later, or below)."""
    text = (BENCHMARKS / f"{name}.py").read_text(encoding="utf-8")
    asked = text.index("require_close(")
    clocks = {"torch_speed": "time_ours(backend, memory", "linear_layouts": "for seconds in (", "attention": "medians(runs", "qlinear": "medians(runs"}
    assert clocks.get(name, "start = clock()") in text[asked:]
