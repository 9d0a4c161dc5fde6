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
