"""What an answer read of the memory, as it is told afterwards, against what its forward passes really read."""

from dataclasses import replace

import numpy as np
import pytest
import tiny_model
import torch
from compare import assert_close

from lm2.models import memory as memory_module
from lm2.models.errors import BackendError, ModelFileError
from lm2.runtime.inspection.last_answer import look_at_answer
from lm2.runtime.loading import load
from lm2.runtime.session.ledger import UNKNOWN
from lm2.runtime.session.session import Session


@pytest.fixture(scope="module")
def model():
    return load("lm2-tiny", backend="torch", device="cpu", threads=1)


@pytest.fixture
def read(monkeypatch):
    """Attention of the last position of every read, mean over heads, as the reads come."""
    seen, look = [], memory_module.look

    def looked(q, kv, looks=None):
        logits = q.float() @ kv[0].float().transpose(-1, -2) / q.shape[-1] ** 0.5  # (b, h, t, n)
        weights = torch.softmax(logits if looks is None else logits + looks[:, None].float(), dim=-1)
        seen.append(weights[0, :, -1].mean(dim=0).numpy())
        return look(q, kv, looks)

    monkeypatch.setattr(memory_module, "look", looked)
    return seen


TALE = ("Mary went to the kitchen.", "John moved to the garden.", "Sandra went to the office.", "Daniel went to the hallway.", "Sandra moved to the bathroom.", "Where is Mary?")


def test_it_is_what_the_answer_read(model, read):
    """Over windows that slide (64 tokens): the same attention, and the row that told the place is the turn's that told it."""
    session = Session(model)
    for message in TALE:
        read.clear()
        session.say(message)
        real = list(read)
        found = look_at_answer(session)
        assert found is not None and len(found.pieces) == 1 + len(session.reply.tokens)
        if not real:
            assert found.written == 0 and found.mass.max() == 0
            continue
        steps = np.stack(real).reshape(-1, len(found.layers), found.mass.shape[-1])[-len(found.pieces) :]  # (t, l, n)
        assert_close("attention", found.mass.transpose(1, 0, 2), steps, 2e-5)
    assert session.at.memory.written > 0, "it began another window"
    assert found.turns[0][0] == 1 and (found.rows[0].turn, found.rows[0].token) == (1, " kitchen")
    assert sum(share for _, share in found.turns) <= 1 + 1e-6 and found.written > 0


def test_another_answer_is_seen(model, read):
    """The control: what another turn read is not it."""
    session = Session(model)
    session.say(TALE[0])
    session.say(TALE[1])
    other = look_at_answer(session)
    session.say("Where is Mary?")
    found = look_at_answer(session)
    with pytest.raises(AssertionError):
        assert_close("attention", found.mass[:, : other.mass.shape[1]], other.mass, 2e-5)


def test_the_session_stays_as_it_is(model):
    one, other = Session(model), Session(model)
    for message in TALE:
        assert one.say(message) == other.say(message)
        before = one.at
        look_at_answer(one)
        assert one.at is before
    assert one.say("Where is John?") == other.say("Where is John?")


def test_long_answers_are_folded_in_their_middle(tmp_path, read):
    """An untrained model that never ends: an answer of several chunks, and one that makes its window slide."""
    made = tiny_model.load_tiny(tiny_model.make(tmp_path / "tiny", "gated", ends=(), window=128, chunk=32))
    session = Session(made, sampling=replace(made.sampling, temperature=0.0))
    session.say("Hello", max_tokens=5)
    for tokens in (70, 90):
        read.clear()
        session.say("Hi", max_tokens=tokens)
        found = look_at_answer(session)
        steps = np.stack(read).reshape(-1, len(found.layers), found.mass.shape[-1])
        kept = found.mass.transpose(1, 0, 2)[-21:-1]  # the last token was fed with the turn's end
        assert any(np.allclose(kept, steps[i : i + 20], atol=2e-5) for i in range(len(steps) - 19))
        assert all(turn == UNKNOWN or turn <= session.at.number for turn, _ in found.turns)


def test_what_is_no_answer(model):
    session = Session(model)
    assert look_at_answer(session) is None
    session.read("Daniel went to the bathroom.", "a tale")
    assert look_at_answer(session) is None
    session.say("Where is Daniel?")
    assert look_at_answer(session).turns[0][0] == 1
    session.undo()
    assert look_at_answer(session) is None


def test_where_it_cannot_be_looked_at(tmp_path, model):
    session = Session(tiny_model.load_tiny(tiny_model.make(tmp_path / "tiny", "released-causal")))
    session.say("Hello", max_tokens=2)
    with pytest.raises(ModelFileError, match="gated"):
        look_at_answer(session)

    class Elsewhere:
        def __getattr__(self, name):
            return getattr(model.backend, name)

        def describe(self, window=None):
            return model.backend.describe(window)._replace(backend="onnx")

    session = Session(replace(model, backend=Elsewhere()))
    with pytest.raises(BackendError, match="torch backend"):
        look_at_answer(session)
