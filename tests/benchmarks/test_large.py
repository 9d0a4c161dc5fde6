"""benchmarks/large.py: the shapes are those of the named models, and a small one goes from end to end."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
PARAMETERS = {"llama-3.2-1b": 1_235_814_400, "qwen3-1.7b": 1_720_574_976}  # of the released models, embedding and head counted once


@pytest.fixture
def large(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("benchmarks_large", BENCHMARKS / "large.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", list(PARAMETERS))
def test_shapes_are_those_of_the_model(large, name):
    shapes = dict(large.tensors(large.SHAPES[name]))
    assert sum(math.prod(shape) for shape in shapes.values()) == PARAMETERS[name]
    files = large.shards(large.SHAPES[name], large.SHARD)
    assert [entry for file in files for entry in file] == list(shapes.items()) and len(files) > 2
    assert all(sum(2 * math.prod(shape) for _, shape in file) <= large.SHARD for file in files if len(file) > 1)


def test_a_peak_is_that_of_the_process_and_a_failure_is_told(large, tmp_path):
    script = (
        "import sys; from pathlib import Path; import large\n"
        "print(*(large.measured([sys.executable, '-c', f\"x = b'1' * {size}\"], Path(sys.argv[1]))[0] for size in (1, 200_000_000)))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "log")]  # no peak is below that of the process that asks: a small one
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(BENCHMARKS)}, capture_output=True, text=True, check=True)
    few, much = map(float, done.stdout.split())
    assert 190 < much - few < 215
    with pytest.raises(SystemExit, match=r"ended with 3:\nwhat went wrong"):
        large.measured([sys.executable, "-c", "print('what went wrong'); raise SystemExit(3)"], tmp_path / "log")


@pytest.mark.slow
@pytest.mark.parametrize("name", list(PARAMETERS))
def test_a_small_one_from_end_to_end(tmp_path, name):
    pytest.importorskip("onnxruntime")
    command = [sys.executable, str(BENCHMARKS / "large.py"), name, "--tiny", "--tokens", "3", "--work", str(tmp_path / "work")]
    done = subprocess.run([*command, "--keep"], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith(f"| {name} ")]
    assert [row[1] for row in rows] == ["interpreter", "make", "convert", "export int4", "generate 3, onnx int4"]
    assert all(float(row[2]) > 10 for row in rows)
    config = json.loads((tmp_path / "work" / f"{name}-int4" / "config.json").read_text())
    assert config["onnx"]["precision"] == "int4" and config["vocab_size"] == 320
    assert len(list((tmp_path / "work" / f"{name}-hf").glob("*.safetensors"))) > 1
