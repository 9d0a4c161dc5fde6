"""Weights of ai.lm2::QLinear on huge pages: asked for when a session is made, where the system has them; never a difference in a bit.

Each session is a process of its own: what the system gives is read of the whole process.
"""

import json
import mmap
import subprocess
import sys

import numpy as np
import pytest
import qlinear_kit
from op_kit import library

OUTPUTS, BLOCKS = 16384, 16  # 4 MB in 4 bits: there is a place for a huge page wherever it lies
COLLAPSE = 25
RUN = """
import hashlib, json, sys
import numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.register_custom_ops_library(sys.argv[1])
session = onnxruntime.InferenceSession(sys.argv[2], options, providers=["CPUExecutionProvider"])
lines = open("/proc/self/smaps_rollup").read().splitlines()
(y,) = session.run(None, {"x": np.load(sys.argv[3])})
kb = sum(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages:"))
print(json.dumps([kb, hashlib.sha256(y.tobytes()).hexdigest()]))
"""


def collapses():
    """Whether this system puts what a process has on huge pages when it asks."""
    try:
        memory = mmap.mmap(-1, 4 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.write(bytes(4 << 20))
        memory.madvise(COLLAPSE)
        with open("/proc/self/smaps_rollup", encoding="utf-8") as f:
            return "AnonHugePages" in f.read()
    except (AttributeError, OSError, ValueError):
        return False


def test_weights_are_on_huge_pages_and_make_the_same_bits(tmp_path, monkeypatch):
    if not collapses():
        pytest.skip("this system puts nothing on huge pages")
    rng = np.random.default_rng(0)
    w = qlinear_kit.matrix(rng, OUTPUTS, BLOCKS, 4, minimum=True)
    (tmp_path / "m.onnx").write_bytes(qlinear_kit.model(w).SerializeToString())
    np.save(tmp_path / "x.npy", rng.standard_normal((2, BLOCKS * 32)).astype(np.float32))
    found = {}
    for switch in ("", "off"):
        monkeypatch.setenv("LM2_HUGE_PAGES", switch)
        words = [sys.executable, "-c", RUN, str(library()), str(tmp_path / "m.onnx"), str(tmp_path / "x.npy")]
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found[switch] = json.loads(done.stdout)
    assert found["off"][0] == 0 and found[""][0] >= 2048  # KB
    assert found["off"][1] == found[""][1]
