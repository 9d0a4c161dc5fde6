"""Sessions saved anywhere and continued on the other backend: the same greedy tokens, through folds and slides; and what must not pass that."""

import itertools
from dataclasses import replace

import forge
import pytest
import tiny_model
from compare import nmse

from lm2 import Sampling, Session
from lm2.runtime.loading import load
from lm2.runtime.session.windows import Windows

pytest.importorskip("mlx.core")
BANK = 1e-10
PAIRS = [("torch", "torch"), ("torch", "mlx"), ("mlx", "torch"), ("mlx", "mlx")]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """(cell, backend) -> a tiny model without end tokens."""
    out = {}
    for cell in ("gated", "gated-4T", "gated-topics", "released-causal"):
        folder = tiny_model.make(tmp_path_factory.mktemp("m") / cell, cell)
        for name in ("torch", "mlx"):
            out[cell, name] = replace(load(folder, name, "cpu", threads=1 if name == "torch" else 0), eos=frozenset())
    return out


def between_folds(session):
    list(session.complete("Once upon a time there was a", 9))
    at = session.feeder.flush(session.at)
    assert at.filled not in at.folds


def after_a_slide(session):
    """An answer goes on in a new window, and is closed there."""
    session.say("one", 3)
    slid = []
    session.notify = slid.append
    for _ in session.stream("two", 60):
        if any("was full" in text for text in slid) or (slid and session.model.config.memory.cell == "released"):
            break
    session.settle()
    assert session.at.memory.written


def at_the_slide(session):
    """The window was left and nothing is in the new one but what was carried."""
    session.say("one", 3)
    session.at = session.feeder.flush(session.feeder.before_document(session.at, session.feeder.size, session.head()))
    assert session.model.config.memory.cell == "released" or session.at.carried == session.at.filled > 0


def in_mid_answer(session):
    session.say("one", 3)
    stream = session.stream("two", 50)
    for _ in range(4):
        next(stream)
    stream.close()


def after_undo(session):
    for message in ("one", "y" * 50, "three"):
        session.say(message, 5)
    session.undo()
    session.undo()


def many_turns(session):
    for i in range(7):
        session.say("n" * i, 6) if i else session.read("r" * 90)


def two_turns(session):
    """In one window, a fold between them that is not a whole chunk after the one before."""
    session.say("a", 2)
    session.say("b", 2)


SCENES = [two_turns, between_folds, after_a_slide, at_the_slide, in_mid_answer, after_undo, many_turns]


def begun(model, scene):
    session = Session(model, "S.", Sampling(0.0), seed=1)
    scene(session)
    return session


def go_on(session):
    """Greedy answers through several folds and a slide, and the memory after them."""
    tokens = []
    for message, n in (("and", 12), ("z" * 40, 20), ("so", 9)):
        session.say(message, n)
        tokens.append(session.reply.tokens)
    return tokens, session.model.backend.to_host(session.memory())


def agree(session, path, model):
    """Whether the session in the file goes on as the one that stayed."""
    (mine, bank), (theirs, other) = go_on(session.fork()), go_on(Session.restore(model, path))
    assert all(mine)
    print(f"same tokens {mine == theirs}; bank NMSE {nmse(other, bank):.2g} gate {BANK:g}")
    return mine == theirs and nmse(other, bank) <= BANK


@pytest.mark.slow
@pytest.mark.parametrize("scene", SCENES, ids=lambda s: s.__name__)
@pytest.mark.parametrize("cell", ["gated", "gated-4T", "gated-topics", "released-causal"])
def test_a_session_goes_on_anywhere(models, tmp_path, cell, scene):
    for source, target in PAIRS:
        session, file = begun(models[cell, source], scene), tmp_path / f"{source}-{target}.lm2s"
        session.save(file)
        assert agree(session, file, models[cell, target]), (source, target)


@pytest.mark.parametrize("cell", ["gated", "gated-4T"])
@pytest.mark.parametrize("fault", ["carried tokens written twice", "a slide loses the head", "pointer off by one", "a fold forgotten"])
def test_a_wrong_restore_is_noticed(models, tmp_path, cell, fault, monkeypatch):
    """Each is a plausible mistake of the side that goes on; none may give the same tokens and the same memory."""
    session, file = begun(models[cell, "torch"], two_turns if fault == "a fold forgotten" else after_a_slide), tmp_path / "s.lm2s"
    session.save(file)
    target = models[cell, "mlx"]
    assert agree(session, file, target), "the control of the control"
    stayed = go_on(session.fork())
    if fault == "carried tokens written twice":
        assert session.at.carried
        file.write_bytes(forge.with_content(file.read_bytes(), lambda c: c["window"].update(carried=0)))
    elif fault == "a fold forgotten":
        marks = (0, *session.at.folds)
        turn = next(b for a, b in itertools.pairwise(marks) if b - a < tiny_model.FOLD and b < session.at.filled)  # others come back by themselves
        file.write_bytes(forge.with_content(file.read_bytes(), lambda c: c["window"]["folds"].remove(turn)))
    elif fault == "a slide loses the head":
        right = Windows._next
        monkeypatch.setattr(Windows, "_next", lambda self, at, head, begin, starts: right(self, at, (), begin, starts))
    else:
        from_host = target.backend.from_host
        monkeypatch.setattr(target.backend, "from_host", lambda bank, written: from_host(bank, written + 1))
    tokens, bank = go_on(Session.restore(target, file))
    distance = nmse(bank, stayed[1])
    print(f"same tokens {tokens == stayed[0]}; bank NMSE {distance:.2g}")
    assert tokens != stayed[0] or distance > BANK
    assert distance > 1e3 * BANK, "not by a hair"
