"""Answers that end badly: closed early, interrupted, an error inside the backend. The session stays whole, usable, and equal to a fresh replay."""

import pytest
from oracle import check, oracle, standing
from tiny_model import WINDOW, recorded

from lm2 import Session
from lm2.models.errors import BackendError, PromptError


def conversation(model, seed=3):
    session = Session(model, "S.", seed=seed)
    session.say("first message", 9)
    return session


def whole(session):
    """Everything about a session that a failed turn must leave as it was."""
    at = session.at
    return standing(session), at.seen, at.draws, at.turns, list(session.transcript), [s.at_rest() for s in session.snapshots]


def test_interrupted_flag(model):
    session, asked = conversation(model), []
    pieces = list(session.stream("hello", 50, interrupted=lambda: asked.append(1) or len(asked) > 5))
    assert session.reply.finish == "interrupted" and len(session.reply.tokens) == 5
    assert "".join(pieces) == session.reply.text == session.transcript[-1]["content"]
    check(session)


def test_closed_early_keeps_what_was_said(model):
    session = conversation(model)
    stream = session.stream("hello", 50)
    got = [next(stream) for _ in range(4)]
    stream.close()
    assert session.reply.finish == "interrupted" and session.transcript[-1]["content"].startswith("".join(got))
    assert standing(session)[1][-2:] == (258, 10)
    check(session)
    session.say("and now?", 5)
    check(session)
    session.undo()
    session.undo()
    assert len(session.transcript) == 2
    check(session)


@pytest.mark.parametrize("act", ["save", "undo", "fork", "reset", "read", "say", "complete", "again"])
def test_an_abandoned_answer_is_ended_before_anything_else(gated, tmp_path, act):
    """`for piece in stream: break`, and then something else: as if the answer had been closed first."""
    sessions = [conversation(gated) for _ in range(2)]
    for session, close in zip(sessions, (True, False), strict=True):
        stream = session.stream("hello", 50)
        next(stream)
        if close:
            stream.close()
        result = {
            "save": lambda s=session: s.save(tmp_path / "s.lm2s"),
            "undo": session.undo,
            "fork": session.fork,
            "reset": session.reset,
            "read": lambda s=session: s.read("text"),
            "say": lambda s=session: s.say("x", 3),
            "complete": lambda s=session: "".join(s.complete("x", 3)),
            "again": lambda s=session: "".join(s.again(5)),
        }[act]()
        assert next(stream, None) is None, "the old answer goes on"
        if act == "save":
            assert standing(Session.restore(gated, tmp_path / "s.lm2s")) == standing(session)
        if act == "fork":
            assert whole(result)[:5] == whole(session)[:5]
        check(session)
    assert whole(sessions[0])[:5] == whole(sessions[1])[:5]


def test_a_stream_never_started_changes_nothing(gated):
    session = conversation(gated)
    before = whole(session)
    session.stream("hello", 50)
    session.complete("hello", 50)
    session.again(50)
    assert whole(session) == before
    session.say("x", 2)
    assert len(session.snapshots) == 2


@pytest.mark.slow
@pytest.mark.parametrize("error", [KeyboardInterrupt(), BackendError("out of memory")])
@pytest.mark.parametrize("message", ["short", "l" * 150])
def test_error_at_every_forward_pass(models, cell_and_steps, error, message):
    """Raised in the k-th `extend` of a turn, for every k: prompt, answer, in a cut, in a move."""
    cell, most = cell_and_steps
    for k in (*range(1, 9), *range(9, most + 1, 3)):
        model = recorded(models[cell])
        session = conversation(model)
        rule = oracle(session)
        rule.say("first message", session.reply.tokens)
        before, calls = whole(session), len(model.backend.calls)
        model.backend.fail = (k, error)
        try:
            session.say(message, 30)
        except type(error) as caught:
            assert caught is error
        else:
            assert k > len(model.backend.calls) - calls
            break
        if len(session.transcript) == 2:
            assert whole(session) == before
        else:
            reply = session.reply
            assert reply.finish == ("interrupted" if isinstance(error, KeyboardInterrupt) else "error")
            assert session.transcript[2:] == [
                {"role": "user", "content": message},
                {"role": "assistant", "content": reply.text},
            ]
            rule.say(message, reply.tokens)
        assert standing(session) == rule.standing()
        check(session)
        session.say("go on", 3)
        assert len(session.reply.tokens) == 3
        check(session)
    else:
        assert most - k < 3


@pytest.fixture(params=["gated", "gated-4T", "released-causal", "released-chunk"])
def cell_and_steps(request):
    return request.param, 60 if request.param == "gated" else 8


def test_an_error_in_reading_goes_back_to_before(gated):
    session = conversation(gated)
    before = whole(session)
    for k in (1, 2, 5):
        gated.backend.fail = (k, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            session.read("r" * 10 * WINDOW)
        assert whole(session) == before
        check(session)


def test_an_error_in_making_an_answer_again_keeps_the_old_one(gated):
    session = conversation(gated)
    session.say("hello", 12)
    before = whole(session)
    gated.backend.fail = (1, RuntimeError("boom"))
    with pytest.raises(RuntimeError):
        "".join(session.again(5))
    assert whole(session) == before
    check(session)
    for k in range(2, 30):  # the window is run again in several pieces; then the new answer begins
        gated.backend.fail = (k, RuntimeError("boom"))
        with pytest.raises(RuntimeError):
            "".join(session.again(9))
        if whole(session) != before:
            break
    assert k > 3 and len(session.transcript) == 4 and 0 < len(session.reply.tokens) < 9
    check(session)


@pytest.mark.parametrize("cell", ["gated", "released-causal"])
@pytest.mark.parametrize("message", ["x" * 100, "x"])
def test_a_listener_that_fails_does_no_harm(models, cell, message):
    """At its k-th call of a turn, for every k: a fold or a slide in the prompt leaves nothing of it, one in the answer what was answered."""
    seen = set()
    for k in range(1, 16):
        left = []

        def notify(text, left=left):
            if left and left.pop() and not left:
                raise OSError("the pipe is gone")

        model = recorded(models[cell])
        session = Session(model, seed=1, notify=notify)
        session.say("hello", 5)
        rule = oracle(session)
        rule.say("hello", session.reply.tokens)
        before = whole(session)
        left += [True] * k
        try:
            session.say(message, 40)
        except OSError as error:
            assert str(error) == "the pipe is gone"
        else:
            break
        left.clear()
        if len(session.transcript) == 2:
            seen.add("prompt")
            assert whole(session) == before
        else:
            seen.add("answer")
            assert session.reply.finish == "error" and len(session.transcript) == 4
            rule.say(message, session.reply.tokens)
            assert standing(session) == rule.standing()
        check(session)
        session.say("go on", 3)
        check(session)
    assert k < 15 and seen, "the last one went through"
    if cell == "gated":
        assert seen == {"prompt", "answer"}


def test_a_message_that_cannot_be_encoded_changes_nothing(gated):
    session = conversation(gated)
    before = whole(session)
    with pytest.raises(PromptError, match="surrogate"):
        session.say("half \ud800 pair")
    assert whole(session) == before


def test_the_test_of_equality_can_fail(gated):
    """Negative control of `check`: one wrong token in the place is found out."""
    session = conversation(gated)
    session.say("y" * 60, 20)
    check(session)
    wrong = session.at.tokens[0] ^ 1
    session.at = session.at._replace(tokens=(wrong, *session.at.tokens[1:]))
    with pytest.raises(AssertionError, match="logits"):
        check(session)
