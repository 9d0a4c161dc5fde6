"""benchmarks/memory_cost.py from end to end on a tiny model, and that it prints nothing where what was timed is wrong."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_model

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
TOY = ("--rounds", "2", "--steps", "3", "--positions", "40,90", "--window", "512", "--turn", "20")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model.make(tmp_path_factory.mktemp("model") / "tiny", window=512, chunk=128, ends=())


def run(*args, home):
    env = os.environ | {"OMP_NUM_THREADS": "1", "LM2_HOME": str(home)}
    command = [sys.executable, str(BENCHMARKS / "memory_cost.py"), *TOY, *map(str, args)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "needs"), [("torch", "torch"), ("mlx", "mlx.core"), ("onnx", "onnxruntime")])
def test_every_figure_of_a_backend(folder, tmp_path, backend, needs):
    pytest.importorskip(needs)
    out = tmp_path / "out"
    done = run("--model", folder, "--backends", backend, "--folder", tmp_path / "made", "--out", out, home=tmp_path / "home")
    assert done.returncode in (0, 1) and "| backend |" in done.stdout, done.stdout + done.stderr[-3000:]
    assert "no speed is reported" not in done.stderr
    report = json.loads((out / "memory_cost.json").read_text())
    (result,) = report["results"]
    assert result["backend"] == backend and result["written"] == result["rows"] == 384 and set(result["decode"]) == {"40", "90"}
    assert all(len(d["on"]) == len(d["off"]) == 2 and d["ratio"] > 0 for d in result["decode"].values())
    assert len(result["fold"]["token"]) == 2 and result["fold"]["turn"] == 20
    for side in ("on", "off"):
        s = result["slide"][side]
        assert s["ahead_tokens"] > 0 and s["tokens"] == s["ahead_tokens"] + s["tokens_after_ahead"], "the message runs what was done ahead, and itself"
    assert result["slide"]["on"]["tokens"] == result["slide"]["off"]["tokens"]
    met = all(d["ratio"] <= 1.1 for d in result["decode"].values()) and result["fold"]["ratio"] <= 4
    assert done.returncode == (0 if met else 1)


@pytest.fixture
def cost(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("benchmarks_memory_cost", BENCHMARKS / "memory_cost.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Wrong:
    """A backend whose numbers are off: by a factor everywhere, or after a fold only."""

    def __init__(self, real, everywhere=1.0, folded=1.0):
        self.real, self.config, self.everywhere, self.folded = real, real.config, everywhere, folded
        self.calls = 0

    def __getattr__(self, name):
        return getattr(self.real, name)

    def extend(self, tokens, window, all_logits=False):
        logits, longer = self.real.extend(tokens, window, all_logits)
        off = self.folded if window.folded and len(tokens) == 1 else 1.0
        return logits * self.everywhere * off, longer


def test_nothing_is_reported_of_a_wrong_backend(cost, folder):
    ids = list(range(1, 250)) * 2
    on, off = (cost.opened(folder, "torch", 1, memory, None)[0].backend for memory in (True, False))
    state = cost.full_memory(on, ids)
    cost.check(on, off, state, ids, 512)
    with pytest.raises(SystemExit, match="no speed is reported: a memory never written"):
        cost.check(Wrong(on, everywhere=1.01), off, state, ids, 512)
    with pytest.raises(SystemExit, match="no speed is reported: the logits after folds"):
        cost.check(Wrong(on, folded=1.01), off, state, ids, 512)


def test_an_answer_changed_ahead_ends_it(cost, monkeypatch):
    replies = iter([(1,), (2,)])

    def fork():
        made = SimpleNamespace(at=None, feeder=SimpleNamespace(flush=lambda at: at), ahead=lambda: None)
        made.say = lambda message, max_tokens: setattr(made, "reply", SimpleNamespace(prefill_s=0.1, tokens=next(replies)))
        return made

    with pytest.raises(SystemExit, match="what was done ahead changed the answer"):
        cost.slide(SimpleNamespace(fork=fork))
