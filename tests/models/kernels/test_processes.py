"""Runs the kernel tests that need a process of their own, both at once: through Triton's interpreter, and its compiler. Skipped where there is no Triton."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lm2.models.kernels import choice

HERE = Path(__file__).parent
FOLDERS = {"interpreted": (180, {"TRITON_INTERPRET": "1"}), "compiled": (24, {"LM2_TEST_COMPILE": "1"})}


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    if not choice.installed():
        pytest.skip("triton is not installed (it has no wheels for this system): the CUDA kernels are not tested here")
    env = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "LM2_KERNELS", "PYTEST_ADDOPTS")}
    env |= {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")), "OMP_NUM_THREADS": "1"}
    running, logs = {}, tmp_path_factory.mktemp("logs")
    for name, (_, own) in FOLDERS.items():
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / name)]
        with open(logs / name, "wb") as log:
            running[name] = subprocess.Popen(command, env=env | own, stdout=log, stderr=subprocess.STDOUT, cwd=HERE.parents[2])
    yield running, logs
    for process in running.values():
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS)
def test_folder(folder, processes):
    running, logs = processes
    code = running[folder].wait(timeout=500)
    said = (logs / folder).read_text(errors="replace")
    assert code == 0, said[-8000:]
    passed = re.search(r"(\d+) passed", said)
    assert passed and int(passed[1]) >= FOLDERS[folder][0] and "skipped" not in said, said[-2000:]
