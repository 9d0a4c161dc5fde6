"""Clients that people have, as they are, against lm2-tiny. OpenAI's for Python is in every test of the server; these run where they are installed:

    npm install --prefix build/clients openai ai @ai-sdk/openai-compatible @ai-sdk/open-responses
    python -m venv build/clients/python && build/clients/python/bin/pip install llm langchain-openai

LM2_CLIENTS names another folder than build/clients.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent / "clients"
FOLDER = Path(os.environ.get("LM2_CLIENTS") or ROOT / "build" / "clients")
PYTHON = FOLDER / "python" / "bin" / "python"
NEEDS = {"openai": ("openai",), "compatible": ("ai", "@ai-sdk/openai-compatible"), "open-responses": ("ai", "@ai-sdk/open-responses")}


def run(command, **more):
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, **more)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def python_with(module):
    """The clients' own Python, where it has the module."""
    if not PYTHON.is_file() or subprocess.run([PYTHON, "-c", f"import {module}"], capture_output=True).returncode:
        pytest.skip(f"{module} is not installed in {PYTHON.parents[1]}")
    return str(PYTHON)


@pytest.mark.parametrize("client", NEEDS)
def test_of_node(server, client):
    missing = [name for name in NEEDS[client] if not (FOLDER / "node_modules" / name).is_dir()]
    if shutil.which("node") is None or missing:
        pytest.skip(f"no node, or not in {FOLDER / 'node_modules'}: {', '.join(missing)}")
    said = json.loads(run(["node", HERE / "chat.mjs", client, f"{server.url}/v1", FOLDER]))
    assert set(said.values()) == {"kitchen."}, said


def test_langchain(server):
    python = python_with("langchain_openai")
    assert set(json.loads(run([python, HERE / "langchain_chat.py", f"{server.url}/v1"])).values()) == {"kitchen."}


def test_llm(server, tmp_path):
    """Simon Willison's `llm`: a model of a file of its own, a conversation that is continued, with and without a stream."""
    python = python_with("llm")
    (tmp_path / "extra-openai-models.yaml").write_text(f"- model_id: tiny\n  model_name: lm2-tiny\n  api_base: {server.url}/v1\n")
    own = {"env": {**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}}
    llm = [python, "-m", "llm"]
    run([*llm, "-m", "tiny", "Mary went to the kitchen."], **own)
    assert run([*llm, "-c", "Where is Mary?"], **own) == "kitchen."
    assert run([*llm, "-c", "--no-stream", "Where is Mary?"], **own) == "kitchen."
