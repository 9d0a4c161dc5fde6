"""Training a reader, at toy size."""

import random
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from recall_training_kit import ONE, same

from lm2 import Sampling, Session
from lm2.models.layout import open_folder
from lm2.models.recall import open_recall, save_recall
from lm2.models.tasks.varied import Varied
from lm2.models.text.tokenizer import Tokenizer
from lm2.models.training import brought, read_task, recall_jobs
from lm2.models.training.plan import Stage
from lm2.models.training.tellings import Telling, Tellings
from lm2.models.weights import load_model
from lm2.runtime.loading import load
from lm2.runtime.session.recalling import Recalling


def test_read_makes_a_reader(lm2, folder, encoded, tmp_path):
    """Stopped and gone on with, a run ends in the bits of one that was not; it writes the recall that it was given, and a reader, which sessions use."""
    runs = {}
    for name, until in (("whole", ()), ("parted", ("--until", "2"))):
        args = ("train", folder, "--task", "read", "--steps", "4", "--stages", "1:1x6", "--recall", encoded, "--out", tmp_path / name, *ONE)
        first = lm2(*args, *until)
        assert first.code == 0, first
        assert not until or lm2(*args).code == 0
        runs[name] = open_recall(tmp_path / name / "recall", open_folder(folder).config)
    made, other = runs["whole"].reader, runs["parted"].reader
    assert all(np.array_equal(made.own[n], other.own[n]) for n in made.own)
    assert same(runs["whole"], open_recall(encoded, open_folder(folder).config))
    assert runs["whole"].margin == runs["parted"].margin != open_recall(encoded, open_folder(folder).config).margin
    assert "--task read" in made.training["command"] and made.use == recall_jobs.USE
    begun = runs["whole"].encoder
    assert any(not np.array_equal(made.own[n], begun.arrays[n]) for n in begun.arrays if n in made.own), "something was learned"
    model = load(folder, "torch", device="cpu", threads=1)
    session = Session(replace(model, recall=runs["whole"]), sampling=Sampling(temperature=0.0))
    assert session.recalling.recall.reader is made


def test_what_is_read_is_what_answers(folder, encoded):
    """The words between first and last piece are the value, where there is one; else both are the text's first piece."""
    config = open_folder(folder).config
    encoder = open_recall(encoded, config).encoder
    model = load_model(open_folder(folder), "cpu")
    told = (
        ("my brother is a baker", "", "a baker"),
        ("The zebra", "", "zebra"),
        ("the horse", "", ""),
        ("a zebra", "is a horse a zebra?", "zebra"),
    )
    for message, before, value in told:
        sample = read_task.ReadTask(model, encoder, lambda rng, m=message, b=before, v=value: ("is a?", m, b, v), 0).sample(
            random.Random(0)
        )
        whole = f"{before} {message}" if before else message
        words = whole[sample.text.offsets[sample.first][0] : sample.text.offsets[sample.last][1]]
        assert (words, sample.first > 0) == (value, bool(value))
        assert not before or sample.text.offsets[sample.first][0] > len(before), "words of what was asked answer nothing"


def test_read_learns(folder, encoded):
    encoder = open_recall(encoded, open_folder(folder).config).encoder
    told = [
        ("is a b?", "my brother is a baker", "", "baker"),
        ("the eats?", "the zebra eats plums", "", "plums"),
        ("is a c?", "striped animal", "", ""),
    ]
    task = read_task.ReadTask(load_model(open_folder(folder), "cpu"), encoder, lambda rng: rng.choice(told), 0)
    optimizer, rng = torch.optim.AdamW(task.maps.parameters(), 3e-3), random.Random(1)
    stage = Stage(1.0, 1, 1, 12)
    losses = []
    for _ in range(30):
        terms = task.step(stage, rng)
        optimizer.zero_grad()
        terms.loss.backward()
        optimizer.step()
        losses.append(float(terms.loss.detach()))
    assert losses[-1] < 0.5 * losses[0], losses
    read = task.reader(recall_jobs.USE, {})
    for question, message, _, value in told:
        found = read.read(question, [message])[0]
        assert (found.odds > 0) == bool(value) and (not value or found.words == value), (question, found)


def test_read_goes_on_with_a_reader(lm2, folder, encoded, tmp_path):
    """A reader that is there is what a run begins with: without a step it is written as it was, to the last bit; with steps it moves."""
    config = open_folder(folder).config
    begun, model = open_recall(encoded, config), load_model(open_folder(folder), "cpu")
    fresh, other = (
        read_task.ReadTask(model, begun.encoder, lambda rng: ("", "", "", ""), seed).reader(recall_jobs.USE, {}) for seed in (0, 1)
    )
    again = read_task.ReadTask(model, begun.encoder, lambda rng: ("", "", "", ""), 1, fresh).reader(recall_jobs.USE, {})
    assert all(np.array_equal(again.own[n], fresh.own[n]) for n in fresh.own)
    assert not np.array_equal(other.own["ends"], fresh.own["ends"]), "a control: another seed begins elsewhere"
    save_recall(tmp_path / "had", config, begun._replace(reader=fresh))
    args = (
        "train",
        folder,
        "--task",
        "read",
        "--steps",
        "2",
        "--stages",
        "1:1x6",
        "--rate",
        "1e-5",
        "--recall",
        tmp_path / "had",
        "--out",
        tmp_path / "out",
        *ONE,
    )
    assert (said := lm2(*args)).code == 0, said
    made = open_recall(tmp_path / "out" / "recall", config).reader
    moved = {n: np.abs(made.own[n].astype(np.float64) - fresh.own[n].astype(np.float64)).max() for n in ("ends", "segment.message")}
    assert all(0 < by < 1e-3 for by in moved.values()), moved


def test_wrong_messages_are_those_that_a_session_would_read(folder, encoded):
    """With an encoder, what stands in an answer's place is chosen in the order in which a session looks at passages."""
    config, plain = open_folder(folder).config, partial(Tokenizer.load(folder).encode, plain=True)
    recall = open_recall(encoded, config)
    session = Recalling(recall, plain)
    made = brought.Brought(Tellings(Varied(("Ann", "Bob"), ("one", "two"))), session.ids, recall, 0)
    texts = ["my brother is a baker", "the zebra eats plums", "a striped animal", "the horse"]
    made.pool, question = [Telling((text,)) for text in texts], "is a baker?"
    scores, _ = recall.finder.scores(session.ids(question), [session.ids(text) for text in texts])
    best = [int(i) for i in np.argsort(-scores, kind="stable")]
    told = session._again(recall.encoder, question, texts, scores)
    assert made._again(recall.encoder, question, best, np.sort(-scores)) == [int(i) for i in np.argsort(-told, kind="stable")]
    assert [int(i) for i in np.argsort(-told, kind="stable")] != best, "a control: the encoder's order is not the finder's"


def test_read_needs_an_encoder(lm2, folder, encoded, tmp_path):
    config = open_folder(folder).config
    save_recall(tmp_path / "bare", config, open_recall(encoded, config)._replace(encoder=None))
    said = lm2("train", folder, "--task", "read", "--recall", tmp_path / "bare", "--out", tmp_path / "out", *ONE)
    assert said.code == 1 and "has no encoder, whose words --task read reads" in said.err, said
    said = lm2("train", folder, "--task", "read", "--out", tmp_path / "out", *ONE)
    assert said.code == 1 and "--task read needs --recall" in said.err, said
