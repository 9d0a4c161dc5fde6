"""The rules of windows and chunks over whole conversations: which tokens stand where, against oracles that know only lists."""

import itertools
import random

import pytest
from oracle import Windows, chatml, check, oracle, standing, written
from tiny_model import FOLD, WINDOW, recorded
from tiny_tokenizer import IM_END

from lm2 import Session
from lm2.models.errors import PromptError


@pytest.mark.parametrize(("system", "overlap"), [(None, None), ("Be brief.", 0), ("Hi", 16)])
def test_windows_are_those_of_the_oracle(model, system, overlap):
    draw = random.Random(f"{system}{overlap}")
    session = Session(model, system, seed=1, overlap=overlap)
    rule = oracle(session, WINDOW // 8 if overlap is None else overlap)
    lengths = [1, 6, 3, 30, 12, 70, 2, 150, 9, 24, 5]
    draw.shuffle(lengths)
    for n in lengths:
        message = "".join(draw.choice("abcdefgh ") for _ in range(n - 1)) + "x"
        session.say(message, max_tokens=draw.choice([1, 4, 11, 25, 90]))
        rule.say(message, session.reply.tokens)
        assert standing(session) == rule.standing()
    assert len(rule.done) > 8
    check(session)


def test_the_oracle_can_disagree(gated):
    """Negative control: an oracle with another overlap must be found out."""
    session, rule = Session(gated, seed=1), Windows(overlap=7)
    session.say("x" * 100, 5)
    rule.say("x" * 100, session.reply.tokens)
    assert standing(session) != rule.standing()


def test_turn_that_fits_is_never_cut(gated):
    """Whatever came before, a turn of at most 7/8 of a window stands whole in one window, and the one before it beside it where both fit in half."""
    draw = random.Random(5)
    session, turns = Session(gated, "S.", seed=2), []
    for _ in range(25):
        message = "".join(draw.choice("abcdef") for _ in range(draw.randint(1, 9)))
        session.say(message, max_tokens=draw.randint(1, 9))
        turns.append((*chatml([("user", message)]), *session.reply.tokens))
    left, unfinished, *_ = standing(session)
    everything = [*(ids for ids, *_ in left), unfinished]
    assert len(left) > 5
    for chunk in everything:
        assert chunk[: len(chatml([("system", "S.")], answer=False))] == tuple(chatml([("system", "S.")], answer=False))
    at = 0
    for turn in turns:
        found = next(i for i in range(at, len(everything)) if contains(everything[i], turn))
        assert found - at <= 2, "a slide at its prompt and one in its answer at most"
        at = found


def contains(whole, part):
    return any(whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1))


def test_long_turn_is_cut_with_the_stated_overlap(model):
    """Every window begins with the head and the last 10 tokens of the one before; cell gated does not write them again."""
    session = Session(model, "Sys", seed=1, overlap=10)
    message = "".join(itertools.islice(itertools.cycle("abcdefghijklmnopqrstuvwxyz0123456789"), 170))
    session.say(message, max_tokens=1)
    head, whole = chatml([("system", "Sys")], answer=False), chatml([("system", "Sys"), ("user", message)])
    left, unfinished, carried, _ = standing(session)
    assert len(left) >= 3 and all(len(ids) == WINDOW for ids, *_ in left)
    put_together = list(left[0][0])
    for (before, *_), (after, known, *_) in itertools.pairwise([*left, (unfinished, carried)]):
        assert list(after[: len(head)]) == head
        assert after[len(head) : len(head) + 10] == before[-10:]
        assert known == (0 if model.config.memory.cell == "released" else len(head) + 10)
        put_together += after[len(head) + 10 :]
    assert put_together == [*whole, *session.reply.tokens, IM_END, 10]
    check(session)


def test_full_window_carries_the_turn(model):
    """In mid-answer the turn goes on whole: moved and written there (released), or written already and carried over (gated)."""
    session = Session(model, seed=1)
    session.say("first", max_tokens=3)
    first, began = session.reply.tokens, session.at.filled
    room = WINDOW - began - len(chatml([("user", "second")]))
    session.say("second", max_tokens=room - 2)
    assert not session.at.memory.written and session.at.filled == WINDOW
    session.undo()
    session.say("second", max_tokens=room + 1)
    left, unfinished, carried, _ = standing(session)
    before = (*chatml([("user", "first")]), *first, IM_END, 10)
    second = (*chatml([("user", "second")]), *session.reply.tokens)
    assert unfinished[: -len((IM_END, 10))] == second
    if model.config.memory.cell == "released":
        assert left == ((before, 0, ()),) and not carried
    else:
        ((ids, known, folds),) = left
        assert ids == (before + second)[:WINDOW] and known == 0 and folds[-1] == WINDOW and len(before) in folds
        assert carried == WINDOW - len(before)
    check(session)


def test_every_turn_ends_in_a_fold(gated):
    session, ends = Session(gated, seed=1), []
    for n in (1, 2):
        session.say("x" * n, max_tokens=2)
        ends.append(session.at.filled)
    _, _, _, folds = standing(session)
    assert set(ends) <= set(folds) and all(b - a <= FOLD for a, b in itertools.pairwise((0, *folds)))


def test_rows_not_reached_keep_their_content(models):
    """A turn of 40 tokens writes 40 rows, from where the pointer stands and round the bank's end; the others are bit for bit what they were."""
    for cell, model in models.items():
        model = recorded(model)
        session, slots = Session(model, seed=1), model.config.memory.slots
        session.read("x" * WINDOW * (5 if cell == "gated-4T" else 1), chat=False)
        if cell.startswith("released"):
            session.at = session.feeder.commit(session.at)
        held = session.memory()
        before = model.backend.to_host(held)
        n = len(chatml([("user", "y")])) + 4 + 2
        session.say("y", max_tokens=4)
        if cell.startswith("released"):
            session.at = session.feeder.commit(session.at)
        after = model.backend.to_host(session.memory())
        first = 0 if cell.startswith("released") else held.written % slots
        changed = (before != after).any(axis=(0, 1, 3))
        assert changed[[(first + i) % slots for i in range(n)]].all() and changed.sum() == n


def test_seen_counts_every_token_once(gated):
    session = Session(gated, "System.", seed=4)
    want = len(chatml([("system", "System.")], answer=False))
    for n in (3, 40, 8, 100, 2, 12):
        session.say("m" * n, max_tokens=20)
        want += len(chatml([("user", "m" * n)])) + len(session.reply.tokens) + 2
        assert session.at.seen == want == len(written(session))
    assert session.at.memory.written > 4 * FOLD


def test_reading(model):
    """A text of any length, in pieces: every byte is in the windows, in order, with the overlap between them."""
    text = "".join(f"line {i}\n" for i in range(60))
    session, told = Session(model, seed=1, overlap=8), []
    session.say("hello", max_tokens=3)
    count = session.read((text[i : i + 70] for i in range(0, len(text), 70)), "a file", progress=told.append)
    assert count == len(text) == told[-1] and told == sorted(told)
    left, unfinished, *_ = standing(session)
    told = chatml([("user", text)], answer=False)
    begin = 0 if model.config.memory.cell == "released" else left[1][1]  # what was said before goes on, if it fits
    whole = list(left[1][0][begin:])
    for ids in (*(ids for ids, *_ in left[2:]), unfinished):
        assert ids[:8] == tuple(whole[-8:])
        whole += ids[8:]
    assert whole == told
    assert session.transcript[-1]["content"] == f"[read a file: {len(text)} tokens]"
    check(session)
    session.say("and?", max_tokens=5)
    check(session)


def test_short_reading_stays_beside_the_conversation(gated):
    session = Session(gated, seed=1)
    session.say("hello", max_tokens=3)
    session.read("note", "n")
    left, unfinished, *_ = standing(session)
    assert not left and unfinished[-6:] == (*b"note", IM_END, 10)


def test_reading_stops_when_asked_and_keeps_what_was_read(gated):
    session, asked = Session(gated, seed=1, overlap=0), []
    session.read(("z" * 50 for _ in range(100)), "z", interrupted=lambda: asked.append(1) or len(asked) > 9)
    read = written(session).count(ord("z"))
    assert 0 < read < 1000 and session.transcript[-1]["content"] == f"[read z: {read} tokens]"
    check(session)
    session.undo()
    assert not session.transcript and session.at.seen == 0


def test_failed_reading_changes_nothing(gated):
    def pieces():
        yield "a" * 500
        raise OSError("gone")

    session = Session(gated, seed=1)
    session.say("hello", max_tokens=3)
    before = standing(session)
    with pytest.raises(OSError, match="gone"):
        session.read(pieces())
    assert standing(session) == before and len(session.transcript) == 2
    check(session)


def test_file_name_that_is_no_text_can_be_saved(gated, tmp_path):
    session = Session(gated, seed=1)
    session.read("note", b"caf\xe9.txt".decode("utf-8", "surrogateescape"))
    assert session.save(tmp_path / "s.lm2s") and "caf?" in session.transcript[0]["content"]


def test_reading_goes_in_by_folds_not_by_tokens(gated):
    session = Session(gated, seed=1)
    session.read("w" * 3000, chat=False)
    assert len(gated.backend.calls) < 4 * 3000 / FOLD


def test_system_prompt_must_leave_room(gated):
    n = WINDOW // 2 - len(chatml([("system", "")], answer=False))
    Session(gated, "s" * n).say("hello" * 40, 40)
    with pytest.raises(PromptError, match=rf"system prompt has {WINDOW // 2 + 1} tokens, more than half of the window of {WINDOW}: take a window of at least {WINDOW + 2}"):
        Session(gated, "s" * (n + 1))


@pytest.mark.parametrize("overlap", [-1, WINDOW // 4 + 1])
def test_overlap_out_of_range(gated, overlap):
    with pytest.raises(PromptError, match="overlap"):
        Session(gated, overlap=overlap)


def test_longest_head_and_longest_overlap_still_advance(gated):
    n = WINDOW // 2 - len(chatml([("system", "")], answer=False))
    session = Session(gated, "s" * n, seed=1, overlap=WINDOW // 4)
    session.say("hello" * 40, 40)
    assert len(session.reply.tokens) == 40
    check(session)
