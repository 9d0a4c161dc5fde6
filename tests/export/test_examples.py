"""The programs of docs/examples run as they are, from an exported folder alone, and say what the backend says."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import onnx_kit
import pytest
import tiny_model
import web_kit

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from lm2.export.export import export_model
from lm2.models.text.tokenizer import Tokenizer

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "docs" / "examples"
NODE = ROOT / ".cache" / "node"
TURNS = ["one", "two?", "three", "four", "a longer word", "six"]
WINDOW = 160


@pytest.fixture(scope="module", params=["gated-4T", "released-causal"])
def folder(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("example")
    export_model(tiny_model.make(root / "m", request.param), root / "x")
    return root / "x"


@pytest.fixture(scope="module")
def turns(folder):
    tokenizer = Tokenizer.load(folder)
    return [list(tokenizer.encode(f"<|im_start|>user\n{turn}<|im_end|>\n<|im_start|>assistant\n")) for turn in TURNS]


def fed(backend, ids, window):
    """Logits after ids, folded wherever a chunk is full."""
    while True:
        room = window.folded + backend.config.memory.chunk - window.length
        if room == 0:
            window = backend.fold(window)
            continue
        logits, window = backend.extend(ids[:room], window)
        ids = ids[room:]
        if not ids:
            return int(logits[0].argmax()), window


def wanted(folder, turns):
    """Greedy answers of the backend, a fold at each turn's end; how many windows and folds there were. Cell released: a window for each turn."""
    backend, window, said, out, seen = onnx_kit.backend(folder), None, [], [], [0, 0]
    gated = backend.config.memory.cell == "gated"
    size = WINDOW if gated else backend.config.memory.chunk
    for ids in turns:
        if gated and said and sum(map(len, said)) + len(ids) + 24 <= size:
            window = backend.fold(window)
            seen[1] += 1
        else:
            while said and (not gated or sum(map(len, said)) > size // 2):
                said.pop(0)
            carried = [token for turn in said for token in turn]
            window = backend.start(1, window and backend.commit(window), size, len(carried))
            seen[0] += 1
            if carried:
                _, window = backend.extend(carried, window)
        token, window = fed(backend, ids, window)
        answer = []
        while token not in backend.config.eos_token_id and len(answer) < 24 and window.length < size:
            answer.append(token)
            token, window = fed(backend, [token], window)
        said.append(ids + answer)
        out.append(answer)
    assert any(out) and seen == ([3, 3] if gated else [6, 0]), seen
    return out


def test_python(folder, turns):
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "onnx_generate.py"), str(folder), *TURNS],
        capture_output=True, text=True, env=os.environ | {"WINDOW": str(WINDOW)},
    )  # fmt: skip
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
        [node, "onnx_generate.mjs", os.fspath(folder)], cwd=NODE, input=json.dumps(turns), capture_output=True, text=True, timeout=120,
        env=os.environ | {"WINDOW": str(WINDOW)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()] == wanted(folder, turns)


def test_onnxruntime_web(folder, turns):
    """Where outputs are not written in place, the same tokens, and no wrong ones. Skips without node or the package (web_kit.py)."""
    node, package = shutil.which("node"), web_kit.ort_web()
    if node is None or package is None:
        pytest.skip("node or onnxruntime-web is not installed")
    done = subprocess.run(
        [node, str(EXAMPLES / "onnx_generate.mjs"), os.fspath(folder)], input=json.dumps(turns), capture_output=True, text=True, timeout=300,
        env=os.environ | {"WINDOW": str(WINDOW), "RUNTIME": str(package / "dist" / "ort.node.min.mjs")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()] == wanted(folder, turns)
