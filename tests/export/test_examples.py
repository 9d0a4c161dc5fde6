"""The programs of docs/examples run as they are, from an exported folder alone, and say what the backend says."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx_kit
import pytest
import tiny_model

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from lm2.export.export import export_model
from lm2.models.text.tokenizer import Tokenizer

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "docs" / "examples"
NODE = ROOT / ".cache" / "node"
TURNS = ["one", "two?", "three"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("example")
    export_model(tiny_model.make(root / "m"), root / "x")
    return root / "x"


@pytest.fixture(scope="module")
def turns(folder):
    tokenizer = Tokenizer.load(folder)
    return [list(tokenizer.encode(f"<|im_start|>user\n{turn}<|im_end|>\n<|im_start|>assistant\n")) for turn in TURNS]


def wanted(folder, turns):
    """Greedy answers of the backend, a chunk for each turn."""
    backend, state, out = onnx_kit.backend(folder), None, []
    for ids in turns:
        chunk, answer = backend.start(1, state), []
        logits, chunk = backend.extend(np.array(ids), chunk)
        token = int(logits[0].argmax())
        while token not in backend.config.eos_token_id and len(answer) < 24 and len(ids) + len(answer) < backend.config.memory.chunk:
            answer.append(token)
            logits, chunk = backend.extend([token], chunk)
            token = int(logits[0].argmax())
        state = backend.commit(chunk)
        out.append(answer)
    assert any(out)
    return out


def test_python(folder, turns):
    done = subprocess.run([sys.executable, str(EXAMPLES / "onnx_generate.py"), str(folder), *TURNS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["tokens"] for line in done.stdout.splitlines()] == wanted(folder, turns)
    assert "lm2" not in (EXAMPLES / "onnx_generate.py").read_text().replace("lm2.state", "").replace("`lm2 export`", "")


@pytest.mark.real
def test_node(folder, turns):
    """With the runtime of another language. npm fetches onnxruntime-node once; skipped, with a warning, where that cannot be had."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node and npm are not installed")
    if not (NODE / "node_modules" / "onnxruntime-node").is_dir():
        NODE.mkdir(parents=True, exist_ok=True)
        (NODE / "package.json").write_text(json.dumps({"name": "example", "private": True}))
        fetched = subprocess.run(
            [npm, "install", "--ignore-scripts", "--no-audit", "onnxruntime-node@1.30.0"], cwd=NODE, capture_output=True, text=True
        )
        if fetched.returncode:
            warnings.warn(f"THE NODE EXAMPLE DID NOT RUN: {fetched.stderr.strip().splitlines()[-1]}", stacklevel=1)
            pytest.skip("onnxruntime-node cannot be fetched")
    shutil.copyfile(EXAMPLES / "onnx_generate.mjs", NODE / "onnx_generate.mjs")
    done = subprocess.run(
        [node, "onnx_generate.mjs", os.fspath(folder)], cwd=NODE, input=json.dumps(turns), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()] == wanted(folder, turns)
