"""Sessions saved and opened again: as if nothing had happened, and never with what does not belong."""

import base64
import json
from dataclasses import replace
from pathlib import Path

import forge
import numpy as np
import pytest
import tiny
import tiny_model
from compare import assert_close
from oracle import check, standing

from lm2 import Sampling, Session
from lm2.models.errors import WriteError
from lm2.runtime.session.ledger import ENTRY
from lm2.runtime.statefile.file import read_session
from lm2.runtime.statefile.keeping import check_contents, expected
from lm2.runtime.statefile.record import (
    SessionError,
    SessionModelError,
    SessionShapeError,
    SessionTokenizerError,
    SessionValueError,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "s.lm2s"


def talk(session, turns=(("hello", 9), ("y" * 90, 30), ("short", 4))):
    for message, n in turns:
        session.say(message, n)
    return session


@pytest.fixture
def saved(gated, path):
    """A session file of several turns and chunks."""
    session = talk(Session(gated, "S.", seed=5))
    session.save(path)
    return session


# Going on


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("turns", [(), (("hello", 9),), (("hello", 9), ("y" * 90, 30), ("short", 4))])
def test_going_on_is_as_if_never_saved(model, path, temperature, turns):
    session = talk(Session(model, "S.", Sampling(temperature), seed=5), turns)
    size = session.save(path)
    assert size == path.stat().st_size
    other = Session.restore(model, path)
    assert standing(other) == standing(session) and other.transcript == session.transcript
    assert (other.system, other.seed, other.sampling, other.at.draws) == ("S.", 5, Sampling(temperature), session.at.draws)
    check(other)
    for message, n in (("and then", 20), ("z" * 70, 40)):
        assert other.say(message, n) == session.say(message, n)
        assert standing(other) == standing(session) and other.at.seen == session.at.seen
        other.save(path)
        other = Session.restore(model, path)
    assert other.created == session.created


def test_saving_in_mid_text(model, path):
    """Plain text, saved after every few tokens: the same tokens as in one go, wherever the chunks end."""
    whole = Session(model, seed=2)
    want = list(whole.complete("start", 90)) and whole.reply.tokens
    session, got = Session(model, seed=2), []
    for i, n in enumerate((7, 1, 30, 2, 40, 10)):
        list(session.complete("" if i else "start", n))
        got += session.reply.tokens
        session.save(path)
        session = Session.restore(model, path)
    assert tuple(got) == want and standing(session) == standing(whole)


def test_undo_after_restore(model, path):
    session = talk(Session(model, seed=5), (("one", 9), ("y" * 90, 30), ("two", 4), ("three", 40)))
    session.save(path)
    other = Session.restore(model, path)
    assert len(other.snapshots) == len(session.snapshots)
    while session.snapshots:
        session.undo()
        other.undo()
        assert standing(other) == standing(session) and other.transcript == session.transcript
        assert (other.at.seen, other.at.draws, other.at.turns) == (session.at.seen, session.at.draws, session.at.turns)
        check(other)
    assert other.say("again", 9) == session.say("again", 9)


def test_again_after_restore(gated, path):
    session = talk(Session(gated, seed=5))
    session.save(path)
    other = Session.restore(gated, path)
    assert "".join(other.again(9)) == "".join(session.again(9))


def test_a_restored_session_is_as_small(saved, gated, path):
    size = path.stat().st_size
    for _ in range(3):
        again = Session.restore(gated, path)
        assert again.save(path) == size
    assert len({id(s.memory) for s in again.snapshots}) == len({id(s.memory) for s in saved.snapshots})


def test_forgotten_turns_come_back(gated, path, monkeypatch):
    from lm2.runtime.session import transcript

    monkeypatch.setattr(transcript, "TRANSCRIPT_CHARS", 400)
    session = Session(gated, seed=1)
    for i in range(9):
        session.say(str(i), 1)
    session.save(path)
    other = Session.restore(gated, path)
    assert other.forgotten_turns == session.forgotten_turns > 0 and other.transcript == session.transcript


def test_the_bank_matters(saved, gated, path):
    """Zeroing the bank in the file changes the logits: the file does something."""
    good = path.read_bytes()
    record = read_session(path, None)
    path.write_bytes(forge.with_array(good, "memory.bank", np.zeros_like(record.now.bank).tobytes()))
    zeroed, right = Session.restore(gated, path), saved.fork()
    a, b = (s.feeder.logits(s.at).logits for s in (zeroed, right))
    assert np.abs(a - b).max() > 0.05
    path.write_bytes(good)
    assert_close("logits", (s := Session.restore(gated, path)).feeder.logits(s.at).logits, b, 1e-5, 1e-4)


# What does not belong


def test_other_models_and_tokenizers(saved, models, tmp_path, path):
    for cell in ("gated-4T", "released-causal"):
        with pytest.raises(SessionModelError, match="was saved with model tiny"):
            Session.restore(models[cell], path)
    twin = tiny_model.load_tiny(tiny_model.make(tmp_path / "twin", seed=2))
    with pytest.raises(SessionModelError, match="start fresh with `--new`"):
        Session.restore(twin, path)
    file = models["gated"].path / "tokenizer.json"
    tokenizer = type(saved.model.tokenizer)(file.read_bytes() + b"\n")
    with pytest.raises(SessionTokenizerError, match="put back its tokenizer"):
        Session.restore(replace(models["gated"], tokenizer=tokenizer), path)
    assert Session.restore(models["gated"], path).transcript == saved.transcript


def test_same_fingerprint_other_shape(saved, models, path):
    """A file that claims this model's fingerprint, with a bank of another shape."""
    model = models["gated-4T"]
    path.write_bytes(forge.with_meta(path.read_bytes(), fingerprint=model.fingerprint))
    with pytest.raises(SessionShapeError, match=r"memory\.bank"):
        Session.restore(model, path)


def edited(path, edit):
    """The session file with its document, notes and snapshots edited in place; digests right."""

    def change(text):
        content = json.loads(text)
        edit(content)
        return forge.dumps(content)

    path.write_bytes(forge.with_text(path.read_bytes(), change))


def put(*keys, value):
    def edit(content):
        for key in keys[:-1]:
            content = content[key]
        if value is KeyError:
            del content[keys[-1]]
        else:
            content[keys[-1]] = value

    return edit


def part(**fields):
    """Fields of the current memory's ledger changed in its first row."""

    def edit(content):
        rows = np.frombuffer(base64.b64decode(content["document"]["ledgers"][0]), ENTRY).copy()
        for name, value in fields.items():
            rows[name][0] = value
        content["document"]["ledgers"][0] = base64.b64encode(rows.tobytes()).decode()

    return edit


LEDGERS = {
    "number of another row": dict(number=1),
    "number not written yet": dict(number=72 * 10**6),
    "number below none": dict(number=-2),
    "token outside": dict(number=0, token=259),
    "token negative": dict(number=0, token=-1),
    "token without a number": dict(number=-1, token=3, turns=0),
    "turn without a number": dict(number=-1, token=-1, turns=[1, 0, 0, 0], sizes=[1, 0, 0, 0]),
    "turn to come": dict(turns=[9, 0, 0, 0]),
    "turn below unknown": dict(turns=[-2, 0, 0, 0]),
    "size NaN": dict(sizes=[np.nan, 0, 0, 0]),
    "size infinite": dict(sizes=[np.inf, 0, 0, 0]),
    "size negative": dict(sizes=[-1, 0, 0, 0]),
    "size minus zero": dict(sizes=[-0.0, 0, 0, 0]),
    "a part of nothing": dict(turns=[1, 2, 0, 0], sizes=[1, 0, 0, 0]),
}
BAD = {
    **{f"no {k}": put("document", k, value=KeyError) for k in ("system", "transcript", "forgotten_turns", "overlap", "window", "sampling")},
    **{f"no note {k}": put("notes", k, value=KeyError) for k in ("starts", "seen", "draws", "turns")},
    **{f"no snapshot note {k}": put("snapshots", 0, "notes", k, value=KeyError) for k in ("starts", "seen", "draws", "turns")},
    **{f"{k} {v!r}": put("notes", k, value=v) for k in ("seen", "draws", "turns") for v in (-1, "1", 1.5, None, True, [])},
    **{
        f"starts {v!r}": put("notes", "starts", value=v)
        for v in (-1, 0, "1", None, True, {}, [-1], [1.5], [True], ["1"], [None], [2, 1], [1, 1], [[1]], [2**70])
    },
    **{f"{k} {v!r}": put("document", k, value=v) for k in ("forgotten_turns", "overlap", "window") for v in (-1, "1", 0.5, None, 2**70)},
    **{f"window {v}": put("document", "window", value=v) for v in (0, 15, 4096, True)},
    **{f"system {v!r}": put("document", "system", value=v) for v in (1, [], {}, "s" * 1000)},
    **{
        f"transcript {v!r}": put("document", "transcript", value=v)
        for v in (None, {}, "text", [1], [{}], [{"role": "user"}], [{"role": "root", "content": ""}], [{"role": "user", "content": 1}], [{"role": [], "content": ""}])
    },
    **{
        f"sampling {v!r}": put("document", "sampling", value=v)
        for v in (None, [], {"temp": 1}, {"temperature": -1}, {"temperature": "hot"}, {"top_k": 1.5}, {"top_p": 2})
    },
    "starts past the tokens": put("notes", "starts", value=[0, 64]),
    "turns past the transcript": put("notes", "turns", value=7),
    "fewer turns than the transcript": put("notes", "turns", value=5),
    "snapshot with more turns": put("snapshots", 0, "notes", "turns", value=7),
    "snapshot starts past its tokens": put("snapshots", 0, "notes", "starts", value=[1]),
    "the name of version 1": lambda content: content["notes"].update(turn=content["notes"].pop("starts")[-1]),
    **{f"ledgers {v!r:.20}": put("document", "ledgers", value=v) for v in (None, {}, [], "", [1], ["", "", "", ""], ["A" * 4224], ["é" * 4224] * 3)},
    **{f"ledger {name}": part(**fields) for name, fields in LEDGERS.items()},
    **{f"numbers {v!r}": put("document", "numbers", value=v) for v in (None, {}, [], [1], [1, 1, 2, 2, 3, 4], [1, 1, 2, 2, 3, -1], [3, 3, 2, 2, 1, 1], ["1"] * 6, [True] * 6)},
    **{f"number {v!r}": put("notes", "number", value=v) for v in (-1, "1", None, 1.5, True, 2**31, KeyError)},
    **{
        f"spans {v!r}": put("notes", "spans", value=v)
        for v in (KeyError, None, {}, 1, [1], [[0]], [[0, 1, 2]], [[0, "1"]], [[0, 4]], [[0, -2]], [[-1, 1]], [[65, 1]], [[2, 1], [1, 2]], [[1, 1], [1, 2]], [[True, 1]])
    },
    "overlap too large": put("document", "overlap", value=17),
    "document empty": put("document", value={}),
    "notes empty": put("notes", value={}),
}  # fmt: skip


@pytest.mark.parametrize("edit", BAD.values(), ids=BAD.keys())
def test_crafted_documents_are_refused(saved, gated, path, edit):
    edited(path, edit)
    with pytest.raises(SessionError) as caught:
        Session.restore(gated, path)
    message = str(caught.value)
    assert str(path) in message and "--new" in message and message.isprintable() and len(message) < 400


def test_crafting_itself_does_no_harm(saved, gated, path):
    """Control: the same way of editing with values that are right, and a key nobody knows."""
    edited(path, put("notes", "starts", value=[0, saved.at.filled]))
    edited(path, put("document", "later", value={"a": 1}))
    edited(path, part(sizes=[1, 0, 0, 0], turns=[1, 0, 0, 0]))
    assert Session.restore(gated, path).transcript == saved.transcript
    check_contents(path, read_session(path, expected(gated)))


def test_a_window_smaller_than_what_it_holds(saved, gated, path):
    """Sizes that are right one by one: the tokens of a moment must fit in the document's window, and one more than what was carried."""
    good = path.read_bytes()
    most = max(s.filled for s in (saved.at, *saved.snapshots))
    edited(path, put("document", "window", value=max(64, most)))
    assert Session.restore(gated, path).transcript
    edited(path, put("document", "window", value=most - 1))
    with pytest.raises(SessionValueError, match=rf"has {most} tokens, its window {most - 1} positions \(document.window\)"):
        Session.restore(gated, path)
    path.write_bytes(good)
    edited(path, lambda c: (c["window"].update(carried=saved.at.filled, folds=[]), c["document"].update(window=saved.at.filled, overlap=0), c.update(snapshots=[])))
    path.write_bytes(forge.with_array(forge.with_array(path.read_bytes(), "snapshots.tokens", b"", [0]), "snapshots.banks", b"", [0, *saved.model.config.bank_shape()]))
    with pytest.raises(SessionValueError, match=rf"carried {saved.at.filled} must be less than its window of {saved.at.filled} positions"):
        Session.restore(gated, path)


@pytest.mark.parametrize("window", [{"carried": 3, "folds": []}, {"carried": 0, "folds": [2]}])
def test_cell_released_neither_carries_nor_folds(models, path, window):
    model = models["released-causal"]
    talk(Session(model, "S.", seed=5), (("hello", 9),)).save(path)
    edited(path, put("window", value=window))
    with pytest.raises(SessionValueError, match=r"cell \(released\) has neither"):
        Session.restore(model, path)


# Version 1


def frozen(config, folder):
    """A model folder whose weights are drawn by NumPy's RandomState, whose numbers never change: files of version 1 belong to it."""
    import tiny_tokenizer
    import torch

    from lm2.models.weights import new_model, save_folder, slots_of

    model, draw = new_model(config), np.random.RandomState(1)
    with torch.no_grad():
        for name, slot in slots_of(model):
            noise = torch.from_numpy(draw.standard_normal(tuple(slot.shape)))
            norm, matrix = "norm" in name and name.endswith("weight"), slot.dim() > 1
            slot.copy_(1 + 0.1 * noise if norm else noise * (1.0 if "embed" in name else slot.shape[-1] ** -0.5) if matrix else 0.1 * noise)
    save_folder(model, folder)
    tiny_tokenizer.make(folder)
    return replace(tiny_model.load_tiny(folder), eos=frozenset())


VERSION_1 = {
    "gated": (
        (19, 113, 100, 28, 181, 184, 113, 123, 113),
        (192, 131, 257, 81, 247, 179, 22, 217, 232, 150, 12, 257),
    ),
    "released": (
        (251, 46, 81, 251, 83, 96, 156, 96, 96),
        (80, 185, 169, 58, 28, 255, 27, 23, 58, 47, 140, 30),
    ),
}
"""What the code that wrote the files answered to `c` with 9 tokens, and after two undos to `d` with 12, inside the chunk of 64."""


@pytest.mark.parametrize("cell", VERSION_1)
def test_a_file_of_version_1_goes_on(cell, tmp_path):
    """Files saved by the code before windows: three chunks in the memory, 19 tokens in the fourth, two turns that can be undone."""
    old = (Path(__file__).parent / "version1" / f"{cell}.lm2s").read_bytes()
    fields = dict(vocab=259, layers=2, name="tiny", tie_word_embeddings=False)
    config = tiny.config(chunk=64, memory_layers=(0, 1), **fields) if cell == "gated" else tiny.config("released", width=64, **fields)
    model, path = frozen(config, tmp_path / "m"), tmp_path / "s.lm2s"
    path.write_bytes(old)
    record = read_session(path, expected(model))
    assert (record.version, record.now.written, len(record.now.tokens), len(record.snapshots)) == (1, 3 * 64, 19, 2)
    for number in (1, 2):  # from version 1, and from what was saved of it
        session = Session.restore(model, path)
        assert session.at.carried == 0 and session.at.folds == () and session.feeder.size == model.window
        session.save(path)
        again = read_session(path, expected(model))
        assert again.version == 2 and again.now.bank.tobytes() == record.now.bank.tobytes() and again.now.tokens == record.now.tokens
        assert [s.written for s in again.snapshots] == [s.written for s in record.snapshots]
        for back in (session, Session.restore(model, path)):
            back.say("c", 9)
            assert back.reply.tokens == VERSION_1[cell][0], number
            back.undo()
            back.undo()
            back.say("d", 12)
            assert back.reply.tokens == VERSION_1[cell][1], number


def test_version_1_has_its_own_notes():
    """`turn` where version 2 has `starts`, and a turn past the tokens is refused as before."""
    path = Path(__file__).parent / "version1" / "gated.lm2s"
    record = read_session(path, None)
    check_contents(path, record)
    for notes, word in (({"turn": 20}, "turn 20"), ({"turn": None}, "turn None"), ({"starts": [0]}, "turn is missing")):
        bad = {k: v for k, v in record.now.notes.items() if k != "turn"} | notes
        with pytest.raises(SessionValueError, match=word):
            check_contents(path, replace(record, now=replace(record.now, notes=bad)))


def test_session_value_error_is_a_session_error():
    assert issubclass(SessionValueError, SessionError)


# Writing


def test_failed_save_keeps_the_old_file(saved, path, tmp_path, monkeypatch):
    good = path.read_bytes()
    saved.say("more", 3)
    with pytest.raises(WriteError, match="does not exist"):
        saved.save(tmp_path / "no" / "such" / "folder.lm2s")
    import os

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(WriteError, match="the disk is full"):
            saved.save(path)
    assert path.read_bytes() == good and [p.name for p in tmp_path.iterdir()] == [path.name]
    saved.say("still here", 3)
    saved.save(path)
    assert path.read_bytes() != good


def test_created_stays_updated_moves(gated, path):
    session = Session(gated, seed=1)
    session.save(path)
    first = read_session(path, None).meta
    session = Session.restore(gated, path)
    session.save(path)
    second = read_session(path, None).meta
    assert second.created == first.created and second.updated >= first.updated
