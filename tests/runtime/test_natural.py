"""Natural recall: what is told and asked, how long it has been out of sight, and the four ways a question is answered."""

import json
from dataclasses import replace

import numpy as np
import pytest
import recall_kit
from oracle import chatml, check, oracle, standing
from tiny_model import recorded

from lm2 import Session
from lm2.models.errors import PromptError
from lm2.models.tasks.natural import talk
from lm2.runtime.evaluation import natural, natural_report
from lm2.runtime.evaluation.store import EvaluationError
from lm2.runtime.evaluation.streams import Stopped


@pytest.fixture
def talker(models, monkeypatch):
    """A tiny model with short fillers; its answers are noise."""
    monkeypatch.setattr(natural, "FILLERS", 4)
    monkeypatch.setattr(natural, "FILLER_TOKENS", 4)
    return natural.Talker(replace(models["gated-4T"]), 0, 3, 64)


def rows_of(talker, count, rows=(), distances=(0, 90), given=()):
    out = list(rows)
    for batch in natural.measure(talker, distances, count, given, out, lambda new: None):
        out += batch
    return out


# a turn that was answered elsewhere


def test_a_turn_that_was_heard_is_a_turn_that_was_said(model):
    session = Session(recorded(model), seed=1)
    rule = oracle(session)
    for message, answer in (("hello", "world"), ("x" * 30, "y" * 40), ("m" * 90, "n"), ("q", "z" * 150)):
        session.hear(message, answer)
        rule.say(message, list(answer.encode()))
        assert standing(session) == rule.standing()
    check(session)
    assert [m["content"] for m in session.transcript[:2]] == ["hello", "world"] and session.reply is None
    session.undo()
    assert len(session.transcript) == 6


def test_hearing_nothing_is_refused(gated):
    session = Session(gated, seed=1)
    with pytest.raises(PromptError, match="the message is empty"):
        session.hear(" ", "yes")
    assert not session.transcript and session.head() == tuple(chatml([], answer=False))


# what is told


def test_conversations_are_held_out_and_drawn_from_the_seed():
    seen = [natural.told(n, 3, ()) for n in range(8)]
    assert seen == [natural.told(n, 3, ()) for n in range(8)] and seen != [natural.told(n, 4, ()) for n in range(8)]
    assert {t.source for t in seen} == {"drawn", "written"}
    for what in seen:
        assert len(what.questions) == natural.FACTS
        for q in what.questions:
            assert q.is_right(f"It was {q.value}.") and not q.is_right("I do not know.") and not q.is_right(q.question)
            assert q.is_right(what.turns[q.turn][0]) or q.wrong, "the value stands in what was said"


def test_the_part_decides_the_written_conversations_alone():
    known, unseen = ([natural.told(n, 3, (), part) for n in range(200)] for part in ("validation", "test"))
    assert known == [natural.told(n, 3, ()) for n in range(200)] and [t.source for t in known] == [t.source for t in unseen]
    assert [t for t in known if t.source == "drawn"] == [t for t in unseen if t.source == "drawn"]
    for found, files in ((known, talk.talks()), (unseen, talk.unseen())):
        written = {tuple(m for m, _ in t.turns) for t in found if t.source == "written"}
        assert written == {t.messages for t in files}, "all of the part's, and no other"
    for what in unseen:
        assert all(q.is_right(what.turns[q.turn][0]) or q.wrong for q in what.questions)


def test_parts_by_name():
    assert [natural.part_of(part) for part in ("auto", "test", "validation")] == ["test", "test", "validation"]
    with pytest.raises(EvaluationError, match="--part train: natural asks what training does not use"):
        natural.part_of("train")


def test_a_talker_asks_of_its_part(talker):
    talker.part = "test"
    (stop,) = talker.conversation(1, (), (0,))
    assert stop.told == natural.told(1, 0, (), "test") != natural.told(1, 0, (), "validation")


def dialogue(folder, held=("Trains_1",)):
    turns = [
        {"role": "user", "content": "To Ghent please", "slots": [["Trains_1.to", 3, 8]]},
        {"role": "assistant", "content": "How many?"},
        {"role": "user", "content": "No, to Bruges, three of us", "slots": [["Trains_1.to", 7, 13], ["Trains_1.seats", 15, 20]]},
    ]
    record = {"id": "1", "services": ["Trains_1"], "turns": turns}
    (folder / "a_slots.jsonl").write_text(json.dumps(record) + "\n")
    (folder / "a_schema.json").write_text(json.dumps({"Trains_1.to": "City the train goes to", "Trains_1.seats": "Number of seats"}))
    (folder / "questions.json").write_text(json.dumps({"held_out": list(held), "questions": {}}))
    return folder


def test_dialogues_of_a_folder(tmp_path):
    """The last value of a slot counts, the one before is wrong; assistants say what they said."""
    (what,) = natural.from_dialogues(dialogue(tmp_path))
    assert what.turns == (("To Ghent please", "How many?"), ("No, to Bruges, three of us", None))
    to, seats = what.questions
    assert to.value == "Bruges" and to.wrong == ("Ghent",) and to.turn == 1 and not to.is_right("Ghent, then Bruges") and to.is_right("Bruges")
    assert seats.is_right("3 seats")
    assert natural.told(2, 0, (what,)) == what
    with pytest.raises(EvaluationError, match="no held-out dialogue with two values"):
        natural.from_dialogues(dialogue(tmp_path, held=()))


# how it is asked


def test_distances_are_counted_from_the_last_sight(talker):
    """By hand: the window's own tokens are searched for the message."""
    for stop in talker.conversation(0, (), (0, 90)):
        tokens = stop.session.at.tokens + stop.session.at.pending
        for q in stop.told.questions:
            message = stop.told.turns[q.turn][0].encode()
            in_sight = bytes(min(t, 255) for t in tokens).find(message) >= 0
            hidden = stop.hidden[q.turn]
            assert not (in_sight and hidden) and (stop.at == 0 or hidden >= stop.at)
        assert stop.at == 0 or all(stop.hidden)


def test_every_arm_reads_its_own_memory(talker, monkeypatch):
    """The same window in every arm; the bank of the session, of the conversation before, and none."""
    banks, backend = [], talker.model.backend
    answer = natural.Talker.answer

    def spied(self, session, at, question):
        state = backend.memory(at.window)
        banks.append((backend.to_host(state).copy(), at.tokens))
        return answer(self, session, at, question)

    monkeypatch.setattr(natural.Talker, "answer", spied)
    (stop,) = talker.conversation(0, (), (90,))
    (before,) = talker.conversation(7, (), (90,))
    other = before.session.memory()
    never = stop.session.feeder.new().memory
    questions = stop.told.questions[:1]
    replies = [talker.ask(stop.session, questions, memory) for memory in (None, other, never)]
    (mine, a), (theirs, b), (none, c) = banks
    assert a == b == c and all(len(r) == 1 for r in replies)
    assert np.array_equal(theirs, backend.to_host(other)) and not none.any()
    assert np.array_equal(mine, backend.to_host(stop.session.memory())) and not np.array_equal(mine, theirs)


def test_a_whole_conversation_is_read_once(talker, monkeypatch):
    """Asked at two places it answers as one that hears it at once, from a memory that was never written, and reads each token once; None where it would not fit."""
    said = [(f"my boat number {n} is green today", "fine") for n in range(9)]
    question, backend = natural.Question("", "what is green?", "green", (), (), 0), talker.model.backend
    alone, again, fed, seen = talker.whole(), talker.whole(), [], []
    alone.session.feeder.on_feed = fed.append
    answer = natural.Talker.answer

    def spied(self, session, at, asked):
        seen.append((backend.to_host(backend.memory(at.window)).copy(), at.tokens, at.logits))
        return answer(self, session, at, asked)

    monkeypatch.setattr(natural.Talker, "answer", spied)
    first, both = alone.ask(said[:2], [question]), alone.ask(said[:3], [question])
    assert sum(fed) == len(alone.at.tokens) and first[0] and both == again.ask(said[:3], [question])
    (bank, tokens, logits), (_, same, other) = seen[1:]
    assert not bank.any() and tokens == same and np.abs(logits - other).max() < 1e-4
    assert np.abs(logits - seen[0][2]).max() > 1e-2, "a control: one turn less is heard"
    assert alone.ask(said * 9, [question]) == [None] and alone.ask(said * 10, [question]) == [None]


def test_asking_leaves_the_session_where_it_was(talker):
    (stop,) = talker.conversation(1, (), (0,))
    before, said = stop.session.at, list(stop.session.transcript)
    first = talker.ask(stop.session, stop.told.questions)
    assert talker.ask(stop.session, stop.told.questions) == first
    assert stop.session.at is before and stop.session.transcript == said


def test_a_window_that_is_full_to_the_last_place(talker):
    """No arm can go on in it: each reads what a slide carries, the same words in all."""
    (stop,) = talker.conversation(1, (), (0,))
    session = stop.session
    session.at = session.feeder.append(session.at, [65] * (session.feeder.size - session.at.filled))
    assert session.at.filled == session.feeder.size
    questions = stop.told.questions[:1]
    replies = [talker.ask(session, questions, memory) for memory in (None, session.feeder.new().memory)]
    assert all(len(r) == 1 and r[0] for r in replies)


@pytest.mark.slow
def test_a_run_goes_on_where_it_stopped(talker, models):
    whole = rows_of(talker, 13)
    assert len(whole) == 26 and {row.at for row in whole} == {0, 90} and {row.number for row in whole} == {0, 1, 2}
    assert rows_of(natural.Talker(models["gated-4T"], 0, 3, 64), 13, whole[:12]) == whole
    calls = []

    def stop():
        calls.append(1)
        if len(calls) > 20:
            raise Stopped

    with pytest.raises(Stopped):
        rows_of(natural.Talker(models["gated-4T"], 0, 3, 64, stop), 13)


def test_the_report_counts_each_arm(talker, monkeypatch):
    """An oracle in place of one arm: right there and nowhere else."""
    real, state = natural.Talker.ask, {}

    def ask(self, session, questions, memory=None, heard=((), ())):
        return [q.value for q in questions] if memory is None else real(self, session, questions, memory)

    monkeypatch.setattr(natural.Talker, "ask", ask)
    rows = rows_of(talker, 6)
    for at in (0, 90):
        mine, other, off, whole = natural_report.shares(rows, at)
        assert mine == (6, 6) and other == (0, 6) and off == (0, 6) and (whole is None or whole[0] == 0), state
    document = natural_report.document(talker.model, rows, (0, 90), {}, True)
    assert document["cells"][0]["arms"]["memory"]["accuracy"] == 1.0 and document["cells"][1]["distance_mean"] >= 90
    assert json.loads(json.dumps(document))["cells"][1]["label"] == "90 tokens out of sight"


def test_released_cells_are_refused(models):
    with pytest.raises(EvaluationError, match="needs a memory of cell gated"):
        natural.Talker(models["released-causal"], 0, 3)


# with a recall


@pytest.fixture
def recalling(talker, monkeypatch):
    """The same with a recall that finds a message's own words, and the passages of every answer that a session gave."""
    talker.model = recorded(replace(talker.model, recall=recall_kit.recall(talker.model.config)))
    seen, say = [], Session.say

    def spied(self, *args, **fields):
        text = say(self, *args, **fields)
        seen.append([p.text for p in self.recalled])
        return text

    monkeypatch.setattr(Session, "say", spied)
    return talker, seen


def test_every_arm_recalls_its_own(recalling):
    """The session's own messages, the other conversation's, none where nothing was written, and none without memory."""
    talker, seen = recalling
    question = natural.Question("", "my boat is green", "green", (), (), 0)
    sessions = []
    for message in ("my boat is green today", "so my boat is green"):
        session = talker._session()
        session.hear(message, "fine")
        session.hear("0000", "1111")
        sessions.append(session)
    mine, other = sessions
    heard = natural._remembered(other)
    before = list(mine.transcript), list(mine.numbers), mine.at, mine.recalled
    for given in ((), heard, (mine.feeder.new().memory,)):
        assert talker.ask(mine, [question], *given) != []
    talker.whole().ask((("my boat is green today", "fine"),), [question])
    assert seen == [["my boat is green today"], ["so my boat is green"], [], []]
    assert (mine.transcript, mine.numbers, mine.at, mine.recalled) == before
    other.hear("my boat is green again", "fine")
    assert len(heard[1][0]) == 4 and len(other.transcript) == 6, "what was remembered stays as it was"


def test_a_run_with_a_recall(recalling):
    talker, seen = recalling
    rows = rows_of(talker, 3, distances=(0,))
    assert len(rows) == 3 and len(seen) > 9
    assert rows_of(talker, 3, distances=(0,)) == rows
