"""A turn is taken out: of the memory, the window, the transcript, what can be undone, and the file. Untrained models behind a recording backend."""

import base64
import json
from dataclasses import replace

import numpy as np
import pytest
import tiny_model
from compare import assert_close

from lm2 import Sampling, Session
from lm2.models.errors import PromptError
from lm2.runtime.backends.torch_backend import TorchBackend
from lm2.runtime.session.ledger import ENTRY, Ledger
from lm2.runtime.statefile.file import read_session

GREEDY = Sampling(temperature=0.0)
SECRET = "zebra QUARTZ"


def session(model, turns=(), system=None, window=256):
    made = Session(model, system, GREEDY, seed=1, window=window)
    for message, answer in turns:
        made.hear(message, answer)
    return made


def bank(made):
    return made.model.backend.to_host(made.memory())


def numbers(made):
    return {h.number for h in made.held()}


def same_ledger(a, b, **gates):
    a, b = a.rows, b.rows
    for name in ("number", "token", "turns"):
        assert (a[name] == b[name]).all(), name
    assert_close("sizes", a["sizes"], b["sizes"], rtol=1e-3, atol=1e-5)


FEW = (("one", "a"), (SECRET, "b"), ("three", "c"))
MANY = (("one", "a"), (SECRET, "b"), *((f"talk {i}", "yes") for i in range(9)))


@pytest.mark.parametrize("cell", ["gated", "gated-topics"])
@pytest.mark.parametrize("system", [None, "S."])
def test_in_the_window_it_is_as_if_never_said(models, cell, system):
    """The same bank, window and answer as of a conversation without the turn; without forgetting they differ."""
    gated = tiny_model.recorded(models[cell])
    one, other, never = session(gated, FEW, system), session(gated, FEW, system), session(gated, (FEW[0], FEW[2]), system)
    gone = one.forget(2)
    never.memory()
    assert gone.messages == 2 and gone.tokens > len(SECRET) and gone.undo == 2
    assert one.at.tokens + one.at.pending == never.at.tokens + never.at.pending and one.at.folds == never.at.folds
    assert_close("bank", bank(one), bank(never), rtol=1e-4, atol=1e-6)
    assert not np.allclose(bank(other), bank(never), atol=1e-3)
    assert one.say("and?", 6) == never.say("and?", 6)
    assert numbers(one) == numbers(never) - {2, 3} | {3, 4} and [m["content"] for m in one.transcript][:4] == ["one", "a", "three", "c"]


@pytest.mark.parametrize("cell", ["gated-4T", "gated-topics"])
def test_out_of_the_window_its_rows_are_as_never_written(models, cell):
    model = tiny_model.recorded(models[cell])
    made = session(model, MANY[:5], "S.", window=96)
    assert 2 not in {turn for _, turn in made.at.spans}, "it left the window"
    [held] = [h for h in made.held() if h.number == 2]
    assert SECRET in held.text and held.window == 0 and 0 < held.share < 1 and held.rows > 0
    taken = made.at.ledger.of(2)
    before, tokens = model.backend.to_host(made.at.memory), made.at.tokens
    gone = made.forget(2)
    assert gone.rows >= taken.sum() > 0 and gone.tokens == 0
    after = model.backend.to_host(made.at.memory)
    assert not after[:, :, taken].any() and before[:, :, taken].any() and (after[:, :, ~taken] == before[:, :, ~taken]).all()
    assert made.at.tokens == tokens and 2 not in numbers(made)


def test_topics_go_wherever_anything_of_the_turn_is_left(models):
    """A row that another turn wrote over, and that has too little of the forgotten one to be taken: its topics are emptied, its words are not."""
    model = tiny_model.recorded(models["gated-topics"])
    made = session(model, MANY[:5], "S.", window=96)
    rows, owned = made.at.ledger.rows.copy(), np.flatnonzero(made.at.ledger.owned(3))
    faint = owned[:2]
    rows["turns"][faint, 1], rows["sizes"][faint, 1] = 2, rows["sizes"][faint, 0] / 100
    made.at = made.at._replace(ledger=Ledger(rows))
    taken, before = made.at.ledger.of(2), model.backend.to_host(made.at.memory)
    assert len(faint) == 2 and taken.any() and not taken[faint].any()
    made.forget(2)
    after = model.backend.to_host(made.at.memory)
    kept = ~taken
    assert (after[0, :, kept] == before[0, :, kept]).all() and after[0, :, faint].any() and before[1, :, faint].any()
    kept[faint] = False
    assert (after[1, :, kept] == before[1, :, kept]).all() and not after[1, :, ~kept].any() and 2 not in numbers(made)


def test_what_is_held_is_told_by_memories_alone(models):
    """Topics a thousand times as large leave the ledger as it was: they are no bank that words are read from."""
    ledgers = []
    for scale in (1, 1000):
        model = tiny_model.recorded(models["gated-topics"])
        right = model.backend.rows
        loud = np.array([1, scale]).reshape(2, 1, 1, 1)
        model.backend.rows = lambda *a, right=right, loud=loud: right(*a) * loud
        ledgers.append(session(model, MANY[:5], "S.", window=96).at.ledger)
    assert ledgers[0].known.any()
    same_ledger(*ledgers)


@pytest.mark.parametrize("turns", [FEW, MANY])
def test_undo_regen_and_fork_do_not_bring_it_back(gated, turns):
    made = session(gated, turns, "S.")
    copy = made.fork()
    made.forget(2)
    assert 2 in numbers(copy), "a fork keeps its own"
    assert made.numbers == [n for n in copy.numbers if n != 2] and made.at.turns == len(made.transcript)
    list(made.again(4))
    assert made.at.number == len(turns) and 2 not in numbers(made.fork())
    while made.snapshots:
        made.undo()
        assert 2 not in numbers(made) and SECRET not in json.dumps(made.transcript) and made.at.turns == len(made.transcript) + made.forgotten_turns
    assert made.at.number == 0 or len(turns) > 4


def test_forgetting_the_last_turn_is_undoing_it(gated):
    made, other = session(gated, FEW), session(gated, FEW)
    made.forget(3)
    other.undo()
    assert made.at.tokens + made.at.pending == other.at.tokens + other.at.pending and made.transcript == other.transcript
    assert_close("bank", bank(made), bank(other), rtol=1e-4, atol=1e-6)
    assert len(made.snapshots) == len(other.snapshots) == 2
    with pytest.raises(PromptError, match="nothing to undo"):
        for _ in range(3):
            made.undo()


def test_everything_can_be_forgotten_one_by_one(gated):
    made = session(gated, FEW, "S.")
    for number in (2, 1, 3):
        made.forget(number)
    assert made.transcript == [] and made.snapshots == [] and numbers(made) <= {0}
    fresh = session(gated, (), "S.")
    assert made.at.tokens == made.head() and made.say("hello", 6) == fresh.say("hello", 6)


def test_a_number_that_is_not_there(gated, models):
    made = session(gated, FEW)
    made.forget(2)
    at = made.at
    for number, line in ((2, "there is no turn 2 .the last one is 3."), (99, "there is no turn 99"), (0, "numbered from 1"), (-1, "numbered from 1")):
        with pytest.raises(PromptError, match=line):
            made.forget(number)
    assert made.at.tokens + made.at.pending == at.tokens + at.pending and len(made.transcript) == 4
    with pytest.raises(PromptError, match="cell released mixes its rows"):
        session(models["released-causal"], FEW, window=None).forget(1)
    with pytest.raises(PromptError, match="cell released mixes its rows"):
        session(models["released-causal"], FEW, window=None).held()


def test_texts_that_were_read_and_plain_text(gated):
    made = session(gated, FEW[:1])
    made.read(f"{SECRET} " * 20, "notes")
    "".join(made.complete("plain words", 5))
    assert [made.numbers, made.at.number] == [[1, 1, 2], 3] and numbers(made) >= {2, 3}
    made.forget(2)
    assert 2 not in numbers(made) and made.numbers == [1, 1] and made.forget(3).messages == 0


# The file


def everything(file, tokenizer):
    """All that a file holds, as text: token ids of windows and ledgers decoded, and the JSON."""
    record = read_session(file, None)
    texts = [tokenizer.decode(m.tokens) for m in (record.now, *record.snapshots)]
    for text in record.document["ledgers"]:
        rows = np.sort(np.frombuffer(base64.b64decode(text), ENTRY), order="number")
        texts.append(tokenizer.decode(rows["token"][rows["number"] >= 0].tolist()))
    return "\n".join([*texts, json.dumps(record.document["transcript"])])


@pytest.mark.parametrize("turns", [FEW, MANY])
def test_the_file_holds_nothing_of_it(gated, tmp_path, turns):
    made, file = session(gated, turns, "S."), tmp_path / "s.lm2s"
    made.save(file)
    assert SECRET in everything(file, gated.text), "the control: it is found where it is"
    made.forget(2)
    made.save(file)
    found = everything(file, gated.text)
    assert SECRET not in found and "QUARTZ" not in found and ("three" in found or "talk" in found)
    assert SECRET.encode() not in file.read_bytes()
    other = Session.restore(gated, file)
    assert numbers(other) == numbers(made) and other.numbers == made.numbers and other.say("so?", 5) == made.say("so?", 5)
    with pytest.raises(PromptError, match="no turn 2"):
        other.forget(2)


@pytest.mark.parametrize("turns", [(), FEW, MANY])
def test_the_same_ledger_after_a_restore(gated, tmp_path, turns):
    """The window is run again in other pieces, and its folds noted again."""
    made, file = session(gated, turns, "S."), tmp_path / "s.lm2s"
    made.memory()
    made.save(file)
    other = Session.restore(gated, file)
    other.memory()
    assert (other.at.number, other.at.spans, other.numbers) == (made.at.number, made.at.spans, made.numbers)
    same_ledger(other.at.ledger, made.at.ledger)
    same_ledger(other.at.noted(), made.at.noted())
    for past, kept in zip(other.snapshots, made.snapshots, strict=True):
        assert (past.number, past.spans) == (kept.number, kept.spans)
        same_ledger(past.ledger, kept.ledger)
    sizes = [file.stat().st_size, other.save(tmp_path / "t.lm2s")]
    assert file.read_bytes() == (tmp_path / "t.lm2s").read_bytes() or sizes[0] == sizes[1]


def test_undo_goes_back_to_the_ledger_of_then(gated):
    made = session(gated, MANY[:4], "S.")
    made.memory()
    then = made.at
    made.say("more", 5)
    made.memory()
    assert not (made.at.noted().rows == then.noted().rows).all()
    made.undo()
    made.memory()
    same_ledger(made.at.noted(), then.noted())


def test_its_size_is_constant(gated, tmp_path):
    """44 bytes a row, as base64, a bank; after a turn and after 80, of any length."""
    file, n = tmp_path / "s.lm2s", gated.config.memory.slots
    made, lengths = session(gated), []
    for turn in range(80):
        made.hear(f"turn {turn} " * (1 + turn % 7), "yes")
        if turn in (0, 30, 79):
            made.save(file)
            texts = read_session(file, None).document["ledgers"]
            lengths.append({len(t) for t in texts})
            assert len(texts) == 1 + len({id(s.memory) for s in made.snapshots} - {id(made.at.memory)}) <= 5
    assert lengths == [{4 * ((44 * n + 2) // 3)}] * 3
    assert made.at.ledger.rows.nbytes == 44 * n


def test_files_from_before(gated, tmp_path):
    """Without notes a file opens: what it holds is nobody's that is known, and what is said next is noted."""
    file = tmp_path / "s.lm2s"
    made = session(gated, MANY, "S.")
    made.save(file)
    old = stripped(file)
    opened = Session.restore(gated, old)
    held = {h.number: h for h in opened.held()}
    assert set(held) == {-1} and held[-1].share == 1 and opened.at.number == len(MANY)
    opened.hear("new things", "ok")
    held = {h.number: h for h in opened.held()}
    assert set(held) - {0} == {-1, len(MANY) + 1} and "new things" in held[len(MANY) + 1].text
    assert opened.forget(len(MANY) + 1).messages == 2 and numbers(opened) - {0} == {-1}
    opened.save(file)
    assert numbers(Session.restore(gated, file)) - {0} == {-1}


def stripped(file):
    """The file as it was before ledgers."""
    import forge

    def change(text):
        content = json.loads(text)
        for name in ("ledgers", "numbers"):
            del content["document"][name]
        for notes in (content["notes"], *(row["notes"] for row in content["snapshots"])):
            del notes["number"], notes["spans"]
        return forge.dumps(content)

    file.write_bytes(forge.with_text(file.read_bytes(), change))
    return file


# Backends and windows


def test_static_buffers(models):
    """The windows of CUDA, run on the CPU: the same ledgers, and the same after forgetting."""
    one, static = models["gated"], replace(models["gated"], backend=TorchBackend(models["gated"].backend.model, static=True))
    for turns in (FEW, MANY):
        a, b = session(one, turns, "S."), session(static, turns, "S.")
        a.memory(), b.memory()
        same_ledger(a.at.noted(), b.at.noted())
        a.forget(2), b.forget(2)
        assert_close("bank", bank(b), bank(a), rtol=1e-4, atol=1e-6)
        same_ledger(a.at.noted(), b.at.noted())


def test_without_a_memory(tmp_path):
    from lm2.runtime.loading import load

    bare = replace(load(tiny_model.make(tmp_path / "m"), "torch", device="cpu", threads=1, memory=False), eos=frozenset())
    made, never = session(bare, FEW), session(bare, (FEW[0], FEW[2]))
    assert [(h.number, h.share, h.rows) for h in made.held()] == [(3, 0, 0), (2, 0, 0), (1, 0, 0)] and SECRET in made.held()[1].text
    assert made.forget(2).rows == 0 and made.at.tokens == never.fork().feeder.flush(never.at).tokens
    made.save(tmp_path / "s.lm2s")
    assert "ledgers" not in read_session(tmp_path / "s.lm2s", None).document
    assert [h.number for h in Session.restore(bare, tmp_path / "s.lm2s").held()] == [3, 1] and made.say("and?", 5) == never.say("and?", 5)
