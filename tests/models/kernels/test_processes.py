"""Runs the kernel tests that need a process of their own: through Triton's interpreter, and through its compiler. Skipped where there is no Triton."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lm2.models.kernels import choice

HERE = Path(__file__).parent


@pytest.mark.parametrize(("folder", "least", "environment"), [
    ("interpreted", 130, {"TRITON_INTERPRET": "1"}),
    ("compiled", 20, {"LM2_TEST_COMPILE": "1"}),
])  # fmt: skip
def test_folder(folder, least, environment, tmp_path):
    if not choice.installed():
        pytest.skip("triton is not installed (it has no wheels for this system): the CUDA kernels are not tested here")
    env = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "LM2_KERNELS", "PYTEST_ADDOPTS")}
    env |= environment | {"TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / folder)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=500, cwd=HERE.parents[2])
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) >= least and "skipped" not in done.stdout, done.stdout[-2000:]
