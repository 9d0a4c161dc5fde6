"""The figures of a comparison against plain formulas on small arrays, and gates that hold or break."""

import math

import numpy as np
import pytest

from lm2.runtime.backend import Description
from lm2.runtime.parity.gates import GATES, Check, precision
from lm2.runtime.parity.inputs import SIZES, split
from lm2.runtime.parity.measures import SMALL, LogitStats, bank_nmse, relative_l2, top_gap


def logits(rows=200, vocab=50, noise=1e-3, seed=0):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(rows, vocab)).astype(np.float32)
    return a, (a + noise * rng.normal(size=a.shape)).astype(np.float32)


def softmax(x):
    e = np.exp(x.astype(np.float64) - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def test_logits_against_the_formulas():
    a, b = logits()
    stats = LogitStats()
    for begin, end in ((0, 1), (1, 70), (70, 200)):
        stats.add(a[begin:end], b[begin:end])
    diff, p, q = np.abs(b - a), softmax(a), softmax(b)
    assert stats.positions == 200 and stats.largest == diff.max() and stats.worst == int(diff.max(axis=1).argmax())
    assert stats.mean == pytest.approx(diff.mean(), rel=1e-5)
    assert stats.relative_l2 == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a), rel=1e-5)
    exact = np.quantile(diff, 0.99, method="inverted_cdf")
    assert exact <= stats.p99 <= exact * 1.009
    assert stats.kl == pytest.approx((p * np.log(p / q)).sum(axis=1).mean(), rel=1e-6)
    assert stats.top1 == (a.argmax(1) == b.argmax(1)).mean()


def test_agreement_counts_clear_positions():
    a = np.array([[0, 1.0, 0.9995], [0, 1.0, 0.9], [0, 1.0, 0.5]], np.float32)
    b = np.array([[0, 0.9995, 1.0], [0, 0.9, 1.0], [0, 1.0, 0.5]], np.float32)
    stats = LogitStats()
    stats.add(a, b)
    assert (stats.same, stats.clear, stats.same_clear) == (1, 2, 1)
    assert stats.top1 == 1 / 3 and stats.top1_clear == 1 / 2
    assert np.allclose(top_gap(a), [5e-4, 0.1, 0.5], atol=1e-6)


def test_merging_is_adding():
    a, b = logits()
    whole, first, second = LogitStats(), LogitStats(), LogitStats()
    whole.add(a, b)
    first.add(a[:90], b[:90])
    second.add(a[90:], b[90:])
    merged = first.merged(second)
    assert merged.figures() == pytest.approx(whole.figures()) and merged.worst == whole.worst
    assert LogitStats().merged(whole).figures() == whole.figures()


def test_equal_logits_differ_by_nothing():
    a, _ = logits()
    stats = LogitStats()
    stats.add(a, a)
    assert stats.figures() == {
        "positions": 200, "max_abs": 0, "mean_abs": 0, "p99_abs": 0, "relative_l2": 0, "top1": 1, "top1_clear": 1,
        "clear_positions": stats.clear, "kl": 0,
    }  # fmt: skip


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_pass_no_gate(bad):
    a, b = logits(noise=0)
    b[150, 7] = bad
    stats = LogitStats()
    stats.add(a[:100], b[:100])
    stats.add(a[100:], b[100:])
    assert not math.isfinite(stats.largest) and not math.isfinite(stats.relative_l2)
    assert stats.same < stats.positions
    for value, gate in ((stats.largest, 5e-4), (stats.relative_l2, 1e-5)):
        assert Check("", "", value, gate).passed is False


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="shapes"):
        LogitStats().add(np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32))


def test_banks():
    rng = np.random.default_rng(1)
    a = rng.normal(size=(3, 1, 4, 5)).astype(np.float32)
    b = a.copy()
    b[1] *= 1.5
    a[2] = b[2] = 0
    assert bank_nmse(a, b) == pytest.approx([0, 0.25, 0])
    b[2, 0, 0, 0] = 1e-6
    assert bank_nmse(a, b)[2] > GATES["float32"].bank, "something where there was nothing"
    assert relative_l2(a[2], b[2]) == math.inf and relative_l2(a, a[:, :, :2]) == math.inf


@pytest.mark.parametrize(("size", "off", "passes"), [(1.0, 1e-6, True), (1.0, 1e-4, False), (1e-5, 1e-4, True), (1e-5, 1e-2, False), (1e-10, 4.0, True)])
def test_a_bank_below_what_its_norm_hears_is_measured_against_that(size, off, passes):
    """The norm that reads a bank adds 1e-6 to its mean square. A wrong bank of 1e-5 still fails; one of 1e-10 reaches nothing, right or wrong."""
    a = size * np.random.default_rng(2).normal(size=(1, 1, 8, 16)).astype(np.float32)
    b = a * np.float32(1 + off)
    (value,) = bank_nmse(a, b)
    assert (value <= GATES["float32"].bank) is passes
    heard = [x / np.sqrt(np.square(x, dtype=np.float64).mean() + SMALL**2) for x in (a, b)]
    assert np.sqrt(np.square(heard[1] - heard[0]).mean()) <= 2e-5 or not passes, "what passes is as near in what the model hears"


def side(dtype="float32", quantization="none"):
    return Description("x", "cpu", dtype, quantization, {}, 0, 0)


@pytest.mark.parametrize(
    ("sides", "row"),
    [
        ((side(), side()), "float32"),
        ((side("float64"), side()), "float32"),
        ((side(), side("float16")), "float16"),
        ((side("float16"), side("bfloat16")), "bfloat16"),
        ((side(), side(quantization="8-bit group 32 (affine)")), "quantised"),
        ((side(), side("float16", "4-bit group 32 (repacked)")), "repacked"),
    ],
)
def test_the_coarsest_side_decides_the_gates(sides, row):
    assert precision(*sides) == row and row in GATES


def test_a_check_without_a_gate_is_not_judged():
    assert Check("", "", 5.0).passed is None
    assert Check("", "", 5.0, 5.0).passed is True and Check("", "", 5.1, 5.0).passed is False
    assert Check("", "", 0.97, 0.97, ">=").passed is True and Check("", "", 0.96, 0.97, ">=").passed is False


@pytest.mark.parametrize("length", [1, 2, 16, 511])
def test_calls_add_up(length):
    calls = split(length, np.random.default_rng(3))
    assert sum(calls) == length and min(calls) >= 1 and max(calls) <= max(SIZES)
