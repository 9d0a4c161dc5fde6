"""lm2-babi: questions whose answer needs several facts, told over many chunks; without its memory it guesses; other backends answer alike."""

import random

import pytest

from lm2.models import home
from lm2.models.tasks.babilong import pieces
from lm2.models.tasks.world import World, story
from lm2.runtime.loading import load
from lm2.runtime.session.sampling import Sampling
from lm2.runtime.session.session import Session

TASKS = ("qa1", "qa2", "qa3", "qa5")
EACH = 12
ELSEWHERE = 12  # of all, on each other backend
GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def folder():
    found = home.shipped_model("lm2-babi")
    assert found is not None, "the package comes with lm2-babi"
    return found


@pytest.fixture(scope="module")
def samples():
    """(messages of a chunk each, question, answer) by turns of each task, 8 to 30 sentences."""
    out = []
    for number in range(len(TASKS) * EACH):
        task = TASKS[number % len(TASKS)]
        rng = random.Random(f"lm2-babi {number}")
        question = None
        while question is None:
            sentences, world = story(rng, task, rng.randint(8, 30)), World()
            for sentence in sentences:
                world.tell(sentence)
            question = world.questions(rng, task)
        out.append((sentences, question.text, question.answer))
    return out


def told(model, sentences):
    """A session that has heard the sentences, each message and its `Ok.` a chunk of its own."""
    session = Session(model, sampling=GREEDY, seed=0)
    for text in pieces(sentences, lambda t: len(model.encode(t, plain=True)), model.config.memory.chunk - 7)[0]:
        assert session.say(text, 8) == "Ok."
    return session


@pytest.fixture(scope="module")
def saved(folder, samples, tmp_path_factory):
    model = load(folder, "torch", threads=1)
    out = []
    for number, (sentences, question, _) in enumerate(samples):
        session = told(model, sentences)
        file = tmp_path_factory.mktemp("story") / f"{number}.lm2s"
        session.save(file)
        out.append((file, session.say(question, 8)))
    return out


def right(samples, answers):
    return sum(answer == a.rstrip(".") for (_, _, answer), a in zip(samples, answers, strict=True))


def test_it_puts_facts_together(samples, saved):
    assert right(samples, [answer for _, answer in saved]) >= 0.8 * len(samples)


def test_without_what_was_told_it_guesses(folder, samples):
    model = load(folder, "torch", threads=1)
    assert right(samples, [Session(model, sampling=GREEDY, seed=0).say(question, 8) for _, question, _ in samples]) <= 0.3 * len(samples)


@pytest.mark.parametrize("backend", ["mlx", "onnx"])
def test_the_same_session_answers_the_same_elsewhere(folder, samples, saved, backend, monkeypatch, tmp_path):
    pytest.importorskip({"mlx": "mlx.core", "onnx": "onnxruntime"}[backend])
    monkeypatch.setenv("LM2_HOME", str(tmp_path))
    model = load(folder, backend, device="cpu")
    for (_, question, _), (file, answer) in list(zip(samples, saved, strict=True))[:ELSEWHERE]:
        assert Session.restore(model, file).say(question, 8) == answer
