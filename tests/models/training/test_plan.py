"""The course of a run: what is read from a command line, what is refused, and the rate at every step."""

import math
from itertools import pairwise

import pytest

from lm2.models.training.curves import Curves
from lm2.models.training.plan import Plan, Stage, TrainError, stages


def test_stages():
    assert stages("0.1:1-2x12,0.5:4x8,1:2-8x6!0.3") == (Stage(0.1, 1, 2, 12), Stage(0.5, 4, 4, 8), Stage(1.0, 2, 8, 6, 0.3))


@pytest.mark.parametrize("text", ["", "1", "1:x4", "1:1-2", "half:1x2", "1:1x2!often", "1:1-2-3x4", "1:1x2,"])
def test_a_stage_that_cannot_be_read(text):
    with pytest.raises(TrainError, match=r"must read like 0\.5:1-4x8"):
        stages(text)


@pytest.mark.parametrize("text", ["0.5:1x2", "0.5:1x2,0.2:1x2,1:1x2", "1:0-2x2", "1:3-2x2", "1:1x0", "1.5:1x2"])
def test_stages_that_make_no_course(text):
    with pytest.raises(TrainError, match="must end at 1"):
        stages(text)


def test_the_stage_of_a_step():
    plan = Plan("t", 100, 1.0, 0, stages("0.1:1x3,0.5:2x3,1:3x3"))
    assert [plan.stage(step).most for step in (0, 9, 10, 49, 50, 99)] == [1, 1, 2, 2, 3, 3]


def test_rates():
    plan = Plan("t", 1000, 0.5, 0, stages("1:1x1"), warmup=100, flat=0.3, floor=0.1)
    rates = [plan.rate_at(step) for step in range(1000)]
    assert rates[0] == 0.005 and rates[49] == 0.25 and set(rates[99:300]) == {0.5}
    assert all(a >= b for a, b in pairwise(rates[300:]))
    assert math.isclose(rates[650], 0.5 * 0.55, rel_tol=1e-3) and math.isclose(rates[-1], 0.05, rel_tol=1e-2)


def test_curves_go_on_from_a_step(tmp_path):
    first = Curves(tmp_path, 0)
    for step in (25, 50, 75):
        first.add(step, {"loss": 1 / step}, {"qa1": 0.5})
    again = Curves(tmp_path, 50)
    again.add(75, {"loss": 9.0, "norm": 1.0}, {"qa1": 0.25, "qa2": 1.0})
    rows = (tmp_path / "curves.csv").read_text().splitlines()
    assert rows == ["step,loss,right qa1,norm,right qa2", "25,0.04,0.5000,,", "50,0.02,0.5000,,", "75,9,0.2500,1,1.0000"]
    Curves(tmp_path, 0).add(25, {"loss": 3.0}, {})
    assert (tmp_path / "curves.csv").read_text() == "step,loss\n25,3\n", "a new run begins a new table"


def test_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    curves = Curves(tmp_path, 0)
    curves.draw()
    assert not (tmp_path / "curves.png").exists()
    curves.add(25, {"loss": 1.0}, {"qa1": 0.5})
    curves.draw()
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
