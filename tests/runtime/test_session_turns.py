"""Turns taken back, forked, made again; and a session whose size does not grow."""

import gc
import itertools
import random

import psutil
import pytest
from compare import assert_close
from oracle import chatml, check, standing
from tiny_model import WINDOW, recorded

from lm2 import Sampling, Session
from lm2.models.errors import PromptError
from lm2.runtime.session import session as session_module
from lm2.runtime.session import transcript


def place(session):
    at = session.at
    return standing(session), at.seen, at.draws, at.turns, list(session.transcript), session.forgotten_turns


def logits(session):
    return session.feeder.logits(session.at).logits


# undo


def test_undo_across_windows(model):
    """Back through turns of every kind, of which several end in a later window than they began: each time exactly where it was."""
    session, draw, places = Session(model, "S.", seed=1), random.Random(2), []
    for n in (3, 20, 120, 5, 40, 9):
        places.append((place(session), logits(session) if session.at.filled else None))
        session.say("u" * n, max_tokens=draw.choice([2, 15, 40]))
        if n == 20:
            places.append((place(session), logits(session)))
            session.read("text " * 40, "t")
    assert session.at.memory.written > 5 * WINDOW // 2
    while places and session.snapshots:
        session.undo()
        (was, numbers) = places.pop()
        assert place(session) == was
        if numbers is not None:
            assert_close("logits", logits(session), numbers, 1e-4, 1e-4)
            check(session)
    assert len(places) <= 3 and (not places or not session.snapshots), "banks of at most UNDO_BANKS earlier windows are kept"


def test_undone_turn_said_again_is_the_same(model):
    session = Session(model, seed=1)
    session.say("one", 10)
    for n in (5, 90):
        first = session.say("x" * n, 25)
        session.undo()
        assert session.say("x" * n, 25) == first
        check(session)


def test_undo_needs_something_to_undo(gated):
    session = Session(gated, seed=1)
    with pytest.raises(PromptError, match="nothing to undo"):
        session.undo()
    session.say("a", 2)
    session.undo()
    assert place(session) == place(Session(gated, seed=1))
    with pytest.raises(PromptError, match="nothing to undo"):
        session.undo()


def test_undo_costs_no_second_pass_over_the_window(gated):
    """Back inside one window nothing is run again: what is said next costs its own tokens."""
    session = Session(gated, seed=1)
    session.say("a", 5)
    session.say("b", 3)
    session.undo()
    calls = len(gated.backend.calls)
    session.say("c", 1)
    assert sum(gated.backend.calls[calls:]) <= len(chatml([("user", "c")])) + 1


def test_snapshots_are_bounded(gated):
    session = Session(gated, seed=1)
    for _ in range(20):
        session.say("a", 1)
        assert len(session.snapshots) <= session_module.UNDO_TURNS
        others = {id(s.memory) for s in session.snapshots} - {id(session.at.memory)}
        assert len(others) <= session_module.UNDO_BANKS and all(s.window is None and s.logits is None for s in session.snapshots)
    session.say("b" * 400, 1)
    session.undo()
    check(session)


def test_reset(gated):
    session = Session(gated, "S.", seed=1)
    session.say("a" * 200, 30)
    session.reset()
    assert place(session) == place(Session(gated, "S.", seed=1)) and session.reply is None and not session.snapshots
    assert session.say("a", 9) == Session(gated, "S.", seed=1).say("a", 9)


# fork


def test_forks_do_not_influence_each_other(model):
    session = Session(model, seed=1)
    session.say("begin", 9)
    session.say("more " * 9, 20)
    copies = [session.fork() for _ in range(3)]
    want = copies[0].say("question", 30)
    original = place(session)
    copies[1].say("something else " * 12, 40)
    copies[1].undo()
    copies[1].undo()
    copies[1].read("text " * 50)
    assert place(session) == original
    check(session)
    assert session.say("question", 30) == want
    copies[2].transcript[0]["content"] = "changed"
    assert session.transcript[0]["content"] == "begin"
    session.reset()
    assert copies[2].say("question", 30) == want
    for copy in copies:
        check(copy)


def test_steps_taken_in_turn_on_two_forks(gated):
    """Two answers made token by token at the same time, from one place in one window."""
    session = Session(gated, seed=1)
    session.say("begin", 4)
    other = session.fork()
    want = session.fork().say("hello", 25)
    a, b = session.stream("hello", 25), other.stream("howdy", 25)
    assert "".join(piece for piece, _ in itertools.zip_longest(a, b, fillvalue="")) == want
    check(session)
    check(other)


# again


def test_again_takes_the_place_of_the_answer(model):
    session = Session(model, seed=1)
    session.say("one", 10)
    before = session.fork()
    first = session.say("two" * 9, 20)
    drawn = session.at.draws
    second = "".join(session.again(20))
    assert second != first and session.at.draws == drawn + 20
    assert [m["content"] for m in session.transcript[2:]] == ["two" * 9, second]
    check(session)
    session.undo()
    assert standing(session) == standing(before)
    with pytest.raises(PromptError, match="nothing to undo"):
        for _ in range(3):
            session.undo()


def test_again_is_greedy_when_the_session_is(gated):
    session = Session(gated, sampling=Sampling(0.0))
    first = session.say("hello", 12)
    assert "".join(session.again(12)) == first


def test_again_needs_an_answer(gated):
    session = Session(gated, seed=1)
    for act in (lambda: None, lambda: session.read("text"), lambda: "".join(session.complete("x", 3)), session.reset):
        act()
        before = place(session)
        with pytest.raises(PromptError, match="no answer to make again"):
            session.again()
        assert place(session) == before


def test_again_uses_the_whole_message(gated, tmp_path, monkeypatch):
    monkeypatch.setattr(transcript, "TURN_CHARS", 50)
    session = Session(gated, seed=1)
    session.say("m" * 120, 2)
    seen = session.at.seen
    assert session.transcript[0]["content"] == "m" * 50 + " [120 characters in all]"
    "".join(session.again(2))
    assert session.at.seen == seen
    session.save(tmp_path / "s.lm2s")
    with pytest.raises(PromptError, match="too long to be kept whole"):
        Session.restore(gated, tmp_path / "s.lm2s").again()


# size


def test_transcript_is_bounded(gated, monkeypatch):
    monkeypatch.setattr(transcript, "TRANSCRIPT_CHARS", 600)
    session = Session(gated, seed=1)
    for i in range(12):
        session.say(f"message {i}", 2)
        assert sum(len(m["content"]) + transcript.MESSAGE_COST for m in session.transcript) <= 600
    assert session.forgotten_turns + len(session.transcript) == session.at.turns == 24
    assert session.transcript[-2]["content"] == "message 11"
    while session.snapshots:
        session.undo()
        assert session.forgotten_turns + len(session.transcript) == session.at.turns
    assert session.at.turns < 24


def test_longest_transcript_fits_in_a_file(gated, tmp_path):
    """Many short messages, or few long ones of the dearest characters: the file's limit on text is never met."""
    for text in ("x", "\u0001" * transcript.TURN_CHARS, "\U0001f600" * transcript.TURN_CHARS):
        session, messages = Session(gated, seed=1), []
        for _ in range(40 if len(text) > 1 else 17000):
            messages.append({"role": "user", "content": text})
        dropped = transcript.remember(messages, "assistant", text)
        session.transcript, session.forgotten_turns, session.numbers = messages, dropped, [0] * len(messages)
        session.at = session.at._replace(turns=dropped + len(messages))
        session.save(tmp_path / "s.lm2s")
        assert Session.restore(gated, tmp_path / "s.lm2s").transcript == messages


def test_state_is_constant(models, tmp_path):
    """Session file and resident memory after 300 windows are those after 10."""
    for cell in ("gated", "released-causal"):
        session, sizes = Session(models[cell], seed=1), []
        process = psutil.Process()
        for until in (10, 300):
            while session.at.written < until * WINDOW:
                session.read("r" * WINDOW, "same title", chat=False)
            gc.collect()
            sizes.append((session.save(tmp_path / "s.lm2s"), process.memory_info().rss))
        (file, resident), (file_later, resident_later) = sizes
        print(f"{cell}: file {file} then {file_later} bytes, resident {resident} then {resident_later}")
        assert abs(file_later - file) <= 256, "header and counters only"
        assert resident_later - resident < 4 << 20


# ahead


def test_what_is_done_ahead_is_what_the_next_turn_would_do(models):
    """A nearly full window is left between turns: what is said next is the same, and costs only its own tokens."""
    model = recorded(models["gated"])
    session, other = Session(model, sampling=Sampling(0.0), seed=1), Session(model, sampling=Sampling(0.0), seed=1)
    for s in (session, other):
        s.say("hello there", 8)
    before = session.at
    session.ahead()
    assert session.at is before or session.at.carried, "nothing to do while a quarter of the window is free"
    for s in (session, other):
        s.say("and more", 6)
    other.ahead()
    assert other.at.carried and other.at.window is not None and not other.at.pending
    calls = len(model.backend.calls)
    said = other.say("next", 5)
    assert sum(model.backend.calls[calls:]) <= len(chatml([("user", "next")])) + 5
    check(other)
    again = Session(model, sampling=Sampling(0.0), seed=1)
    again.say("hello there", 8)
    again.say("and more", 6)
    again.at = again.feeder.slide(again.at, again.head(), WINDOW // 2)
    assert again.say("next", 5) == said
    other.undo()
    check(other)
