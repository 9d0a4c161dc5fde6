"""The op's reference: values known without it, the model's own update, refusals with the values in the text, and the page that documents it."""

import re
from pathlib import Path

import numpy as np
import pytest
from op_kit import ODD, check, rows

from lm2.export.ops.reference import OpInputError, gated_memory_update

PAGE = Path(__file__).parent.parent.parent / "docs" / "ops.md"
KINDS = ("float32", "float16")


def one(i, f, z, old, dtype="float32"):
    return gated_memory_update(*(np.array([v], dtype) for v in (i, f, z, old)))[0]


@pytest.mark.parametrize("dtype", KINDS)
def test_values_known_by_hand(dtype):
    assert one(0, 0, 0, 8, dtype) == 4
    assert one(50, -np.inf, 20, 7, dtype) == 1
    assert one(-np.inf, 50, 3, 7, dtype) == 7
    assert one(0, -np.inf, -20, 7, dtype) == -0.5
    assert one(0, 0, np.log(3) / 2, 2) == pytest.approx(0.5 * 0.5 + 1)
    assert np.isposinf(one(0, 0, 0, np.inf, dtype)) and np.isnan(one(0, -np.inf, 0, np.inf, dtype))


@pytest.mark.parametrize("place", range(4))
def test_a_nan_anywhere_gives_nan(place):
    values = [0.5] * 4
    values[place] = np.nan
    assert np.isnan(one(*values))


def test_it_is_what_the_model_computes():
    torch = pytest.importorskip("torch")
    from lm2.models.update import gated_memory_update as in_the_model

    arrays = rows(np.random.default_rng(3), (3, 16, 40), np.float32)
    np.testing.assert_allclose(gated_memory_update(*arrays), in_the_model(*map(torch.from_numpy, arrays)).numpy(), rtol=1e-6, atol=1e-6)


def test_half_is_rounded_once():
    arrays = rows(np.random.default_rng(4), (50, 40), np.float16)
    wide = gated_memory_update(*(a.astype(np.float32) for a in arrays))
    np.testing.assert_array_equal(gated_memory_update(*arrays), wide.astype(np.float16))


def test_refusals_name_input_and_values():
    a, b = np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32)
    with pytest.raises(OpInputError, match=r"input i is float32 \(2, 3\) and input z is float32 \(2, 4\)"):
        gated_memory_update(a, a, b, a)
    with pytest.raises(OpInputError, match=r"input i is float32 \(2, 3\) and input old is float16 \(2, 3\)"):
        gated_memory_update(a, a, a, a.astype(np.float16))
    with pytest.raises(OpInputError, match="input i has dtype float64; give float32 or float16"):
        gated_memory_update(*[a.astype(np.float64)] * 4)
    with pytest.raises(OpInputError, match="input f is a list"):
        gated_memory_update(a, [1.0], a, a)


def test_the_check_of_these_tests_can_fail():
    arrays = rows(np.random.default_rng(5), (4, 8), np.float32)
    good = gated_memory_update(*arrays)
    check(good, arrays)
    for spoilt in (good * np.float32(1 + 2e-6), np.where(good == good.max(), np.nan, good).astype(np.float32), -good):
        with pytest.raises(AssertionError):
            check(spoilt, arrays)


def test_the_page_shows_this_reference():
    """The page's NumPy function computes the same bits, for every odd value too."""
    code = re.search(r"```python\n(import numpy as np\n.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert code, "docs/ops.md has no NumPy reference"
    scope: dict = {}
    exec(code[1], scope)
    with np.errstate(all="ignore"):
        for dtype in KINDS:
            odd = np.array(ODD).astype(dtype)
            arrays = [a.ravel() for a in np.meshgrid(odd, odd, odd, odd)]
            np.testing.assert_array_equal(scope["gated_memory_update"](*arrays), gated_memory_update(*arrays))
