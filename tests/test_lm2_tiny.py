"""The model that comes with the package: it remembers what left its window, and a session begun on one backend answers the same on the others."""

import pytest

from lm2.models import home
from lm2.models.tasks.recall import conversations
from lm2.runtime.loading import load
from lm2.runtime.session.sampling import Sampling
from lm2.runtime.session.session import Session

SAMPLES = 48
ELSEWHERE = 12  # of them, on each other backend
GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def folder():
    found = home.shipped_model("lm2-tiny")
    assert found is not None, "the package comes with lm2-tiny"
    return found


@pytest.fixture(scope="module")
def samples(folder):
    """Stories of the validation part, the fact three chunks before the question."""
    model = load(folder, "torch", threads=1)
    made = conversations("story", 7, "validation", 3, lambda text: len(model.encode(text)), model.config.memory.chunk)
    return [next(made) for _ in range(SAMPLES)]


@pytest.fixture(scope="module")
def saved(folder, samples, tmp_path_factory):
    """Every story told on torch, the session saved before the question, and what torch answers."""
    model = load(folder, "torch", threads=1)
    out = []
    for number, sample in enumerate(samples):
        session = Session(model, sampling=GREEDY, seed=0)
        for chunk in sample.chunks:
            assert session.say(chunk[0].content, 8) == chunk[1].content
        file = tmp_path_factory.mktemp("story") / f"{number}.lm2s"
        session.save(file)
        out.append((file, session.say(sample.question, 8)))
    return out


def right(sample, answer):
    return sample.answer in answer.lower().rstrip(".").split()


def test_it_remembers(samples, saved):
    assert sum(right(s, answer) for s, (_, answer) in zip(samples, saved, strict=True)) >= SAMPLES * 10 / 12


def test_without_what_was_told_it_guesses(folder, samples):
    model = load(folder, "torch", threads=1)
    guesses = [Session(model, sampling=GREEDY, seed=0).say(s.question, 8) for s in samples]
    assert sum(map(right, samples, guesses)) <= SAMPLES // 3


@pytest.mark.parametrize("backend", ["mlx", "onnx"])
def test_the_same_session_answers_the_same_elsewhere(folder, samples, saved, backend, monkeypatch, tmp_path):
    pytest.importorskip({"mlx": "mlx.core", "onnx": "onnxruntime"}[backend])
    monkeypatch.setenv("LM2_HOME", str(tmp_path))
    model = load(folder, backend, device="cpu")
    for sample, (file, answer) in list(zip(samples, saved, strict=True))[:ELSEWHERE]:
        assert Session.restore(model, file).say(sample.question, 8) == answer


# Seen and steered

FACTS = ("Mary went to the kitchen.", "John moved to the garden.", "Bill journeyed to the office.")
TALK = ("The heavy snow rose above the roofs.", "The warm fence vanished beyond the roofs.")
WHO = (("Mary", "kitchen"), ("John", "garden"), ("Bill", "office"))


def told(model, talk):
    """Three facts and so many turns of other talk."""
    session = Session(model, sampling=GREEDY, seed=0)
    for line in (*FACTS, *(TALK[i % 2] for i in range(talk))):
        session.hear(line, "Ok.")
    return session


def asked(session):
    return [session.fork().say(f"Where is {who}?", 8) for who, _ in WHO]


@pytest.mark.parametrize("talk", [0, 12], ids=["in the window", "out of the window"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_fact_is_forgotten_and_others_are_not(folder, tmp_path, talk, number):
    from lm2.runtime.statefile.file import read_session

    model, file = load(folder, "torch", threads=1), tmp_path / "s.lm2s"
    session = told(model, talk)
    strongest = session.held(3)
    assert {h.number for h in strongest} == {1, 2, 3} and all(FACTS[h.number - 1] in h.text and h.rows for h in strongest)
    assert all((h.window > 0) == (talk == 0) for h in strongest)
    assert all(place in answer for (_, place), answer in zip(WHO, asked(session), strict=True)), "the control: nothing is forgotten yet"
    gone = session.forget(number)
    assert gone.rows > 0 and (gone.tokens > 0) == (talk == 0)
    session.save(file)
    for each in (session, Session.restore(model, file)):
        right = [place in answer for (_, place), answer in zip(WHO, asked(each), strict=True)]
        assert right == [i + 1 != number for i in range(3)]
    record = read_session(file, None)
    name, place = WHO[number - 1]
    words = "\n".join(model.text.decode(m.tokens) for m in (record.now, *record.snapshots)) + str(record.document["transcript"])
    assert name not in words and place not in words
    assert all(name not in h.text and place not in h.text for h in Session.restore(model, file).held())


@pytest.mark.parametrize("backend", ["mlx", "onnx"])
@pytest.mark.parametrize("talk", [0, 12], ids=["in the window", "out of the window"])
def test_forgotten_alike_on_every_backend(folder, backend, talk, monkeypatch, tmp_path):
    pytest.importorskip({"mlx": "mlx.core", "onnx": "onnxruntime"}[backend])
    monkeypatch.setenv("LM2_HOME", str(tmp_path))
    here, there = told(load(folder, "torch", threads=1), talk), told(load(folder, backend, device="cpu"), talk)
    assert asked(here) == asked(there)
    held = [[(h.number, round(h.share, 3), h.rows, h.text, h.window) for h in s.held(3)] for s in (here, there)]
    assert held[0] == held[1]
    assert here.forget(2) == there.forget(2)
    answers = asked(there)
    assert asked(here) == answers and [place in a for (_, place), a in zip(WHO, answers, strict=True)] == [True, False, True]
