"""A session of a model whose layers see windows, begun on PyTorch and carried to every backend in the session file: folds, a slide, the same greedy tokens."""

from dataclasses import replace

import pytest
import tiny_model
from compare import nmse

from lm2 import Sampling, Session
from lm2.runtime.loading import load

BANK = 1e-10


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny_model.make(tmp_path_factory.mktemp("m") / "gated-sliding", "gated-sliding")


def opened(source, backend):
    return replace(load(source, backend, "cpu", **({} if backend == "mlx" else {"threads": 1})), eos=frozenset())


@pytest.fixture(scope="module")
def begun(source, tmp_path_factory):
    """The session that stays on PyTorch, in the middle of a window after a slide, and its file."""
    model, file = opened(source, "torch"), tmp_path_factory.mktemp("s") / "s.lm2s"
    session, told = Session(model, "S.", Sampling(0.0), seed=1), []
    session.notify = told.append
    for message in ("one", "y" * 50, "two"):
        session.say(message, 20)
    assert any("was full" in text for text in told) and session.at.memory.written and session.at.filled > 9
    session.save(file)
    return session, file


def go_on(session):
    """Greedy answers over folds and another slide, and the memory after them."""
    tokens = []
    for message, count in (("and", 12), ("z" * 40, 20), ("so", 9)):
        session.say(message, count)
        tokens.append(session.reply.tokens)
    return tokens, session.model.backend.to_host(session.memory())


@pytest.mark.parametrize("backend", ["torch", "onnx", "mlx"])
def test_it_goes_on_anywhere(source, begun, backend, tmp_path, monkeypatch):
    pytest.importorskip({"torch": "torch", "onnx": "onnxruntime", "mlx": "mlx.core"}[backend])
    monkeypatch.setenv("LM2_HOME", str(tmp_path))
    session, file = begun
    (mine, bank), (theirs, other) = go_on(session.fork()), go_on(Session.restore(opened(source, backend), file))
    assert all(mine) and theirs == mine and nmse(other, bank) <= BANK


@pytest.mark.parametrize("change", [1, -1])
def test_a_window_of_one_more_or_less_is_noticed(source, begun, change):
    session, file = begun
    model = opened(source, "torch")
    model.backend.model.blocks[0].self_attn.window += change
    (_, bank), (_, other) = go_on(session.fork()), go_on(Session.restore(model, file))
    assert nmse(other, bank) > 1e3 * BANK, "not by a hair"
