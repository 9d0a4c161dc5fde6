"""benchmarks/gpu.py from end to end without a GPU, through Triton's interpreter, as on a machine where lm2 is not installed."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from lm2.models.kernels import choice

ROOT = Path(__file__).parents[2]


def run(*args, bare=False):
    """The script in a process of its own; `bare`: without the .pth files that make an editable lm2 importable."""
    env = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "LM2_KERNELS", "LM2_HOME")} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, *(["-S"] if bare else []), str(ROOT / "benchmarks" / "gpu.py"), *map(str, args)]
    if bare:
        env["PYTHONPATH"] = os.pathsep.join(p for p in (*sys.path, sysconfig.get_path("purelib")) if p.endswith("site-packages"))
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=500, cwd=ROOT)


@pytest.mark.slow
def test_all_sections_at_toy_size_and_going_on(tmp_path):
    if not choice.installed():
        pytest.skip("triton is not installed (it has no wheels for this system)")
    done = run("--toy", "--out", tmp_path, "--seed", "7")
    assert done.returncode == 0, done.stdout + done.stderr[-6000:]
    record = json.loads((tmp_path / "gpu.json").read_text())
    sections = record["sections"]
    assert record["seed"] == 7 and len(sections) == 12
    assert {n for n, s in sections.items() if s["state"] != "done"} <= {"onnxruntime", "mlx"}
    assert all(s["state"] == "done" or "not installed" in s["why"] for s in sections.values())
    judged = [j for s in sections.values() for j in s.get("judged", [])]
    assert len(judged) >= 8 and all(met for *_, met in judged), judged
    assert "interpreted" in str(sections["environment"]["rows"])
    assert "No time in it means anything" in (tmp_path / "gpu.md").read_text()

    sections["update"]["state"] = "failed"
    (tmp_path / "gpu.json").write_text(json.dumps(record))
    again = run("--toy", "--out", tmp_path, "--only", "environment", "update", bare=True)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "copy" not in again.stdout, "its bandwidth is known"
    assert "seed 7" in again.stdout and "environment: done before" in again.stdout and "update: done in" in again.stdout


def test_floors_and_no_device(tmp_path):
    import torch

    done = run("--floors", bare=True)
    assert done.returncode == 0, done.stderr
    assert "| LM2-1.7B released | 1 | 4386 | 2505 | +75.1% |" in done.stdout
    if not torch.cuda.is_available():
        refused = run("--out", tmp_path)
        assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "no CUDA device" in refused.stderr


def test_floors_count_the_weights_of_a_model():
    """Every parameter that a step uses, by the model itself: two tiny models, one with a head of its own."""
    import tiny

    from lm2.models.weights import random_model

    sys.path.insert(0, str(ROOT / "benchmarks"))
    import gpu_floors
    import torch

    for name in ("gated", "gated-eye", "released-causal"):
        model = random_model(tiny.CELLS[name], 0, torch.bfloat16)
        once = [p for n, p in model.named_parameters() if ".kv_proj" in n or "bank_norm" in n or ("embed" in n and name == "gated-eye")]
        counted = sum(p.numel() * p.element_size() for p in model.parameters()) - sum(p.numel() * p.element_size() for p in once)
        assert gpu_floors.weight_bytes(model.config) == counted
