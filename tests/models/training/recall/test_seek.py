"""Training a finder, at toy size, against what a session finds."""

import random

import numpy as np
import pytest
import recall_kit
import tiny
import torch
from recall_training_kit import decoder, tasks

from lm2.models.layout import open_folder
from lm2.models.training import frozen, recall_jobs, seek_task
from lm2.models.training.plan import Stage
from lm2.models.training.seek_task import SeekTask
from lm2.models.weights import load_model
from lm2.runtime.loading import load
from lm2.runtime.session.recalling import Recalling


def test_seek_learns(folder):
    model, tellings, encode = tasks(folder)
    task = SeekTask(model, tellings, encode, 1, 0)
    assert all(not p.requires_grad for p in model.parameters()) and all(p.requires_grad for p in task.maps.parameters())

    def loss(seed):
        return task.step(Stage(1, 1, 1, 1), random.Random(seed)).loss

    with torch.no_grad():
        before = sum(float(loss(100 + i)) for i in range(4))
    optimizer = torch.optim.AdamW(task.maps.parameters(), lr=0.03)
    for step in range(40):
        optimizer.zero_grad()
        loss(step).backward()
        optimizer.step()
    with torch.no_grad():
        after = sum(float(loss(100 + i)) for i in range(4))
    print(f"loss of 4 other steps: {before:.3f}, after 40 steps {after:.3f}")
    assert after < 0.9 * before
    terms = task.step(Stage(1, 1, 1, 1), random.Random(3))
    assert len(terms.hits["found"]) + 0 <= 6 and len(terms.hits["idle"]) == 3 and terms.tokens > 100


def test_few_features_make_a_narrow_finder():
    maps = seek_task.FinderMaps(torch.randn(50, 12, generator=torch.Generator().manual_seed(1)), 0, 96)
    finder = maps.finder()
    assert finder.asking.shape == (50, 12) and finder.mix.shape == (3, 12)
    want = maps.scores([(1, 2, 3)], [(4, 5), (6, 7, 8)]).detach().numpy()[0]
    scores, nothing = finder.scores((1, 2, 3), [(4, 5), (6, 7, 8)])
    np.testing.assert_allclose([*scores, nothing], want, atol=0.05)


def test_the_finder_is_trained_on_what_sessions_give_it(folder):
    model, tellings, encode = tasks(folder)
    task, recalling = SeekTask(model, tellings, encode, 1, 0), Recalling(recall_kit.recall(open_folder(folder).config), encode)
    for text in (" My dog is Rex. ", "WHO?", "naïve 犬\n"):
        assert task.ids(text) == recalling.ids(text) != tuple(encode(text))
    assert len(task.ids("x" * 100)) == seek_task.TOKENS == recalling.recall.tokens


@pytest.mark.parametrize("kind", [None, *tiny.BACKBONES])
def test_a_token_alone_is_what_the_backbone_makes_of_it(tmp_path, kind):
    """The same states as in a window of two tokens; after a last layer, its norm taken, its logits."""
    folder = decoder(tmp_path / "model", kind or "gated")
    model = load_model(open_folder(folder).without_memory(), torch.device("cpu")).requires_grad_(False)
    layers, tables = model.config.num_hidden_layers, model.tables(8)
    with torch.no_grad():
        both = frozen.states(model, tables, [(1, 65), (1, 66, 67), (1, 65)], after=(1, layers))
        assert both.shape == (7, 2 * model.config.hidden_size) and torch.allclose(both[:2], both[5:], atol=1e-5)
        got = model.lm_head(model.norm(both[1, model.config.hidden_size :])).numpy()
    backend = load(folder, "torch", device="cpu", threads=1, memory=False).backend
    want, _ = backend.extend(np.array([1, 65]), backend.start(1))
    other, _ = backend.extend(np.array([2, 65]), backend.start(1))
    assert np.abs(got - want[0]).max() < 1e-4 < np.abs(got - other[0]).max()
    features = frozen.alone(model, 1, (1,))
    assert features.shape == (model.config.vocab_size, 2 * model.config.hidden_size) and features.abs().max() <= 4
    assert torch.allclose(frozen.alone(model, 1, (1, layers))[:, : features.shape[1]], features, atol=1e-5)


@pytest.mark.parametrize(("called", "count"), [({}, 5), ({"called": recall_jobs.CALLED_TO_READ}, 11)])
def test_passages_are_read_for_few_that_ask_for_nothing(folder, monkeypatch, called, count):
    """At the margin that is set, for a tenth of messages drawn as they are drawn there, for a quarter where a reader looks first; a step lower for more."""
    _, tellings, encode = tasks(folder)
    monkeypatch.setattr(recall_jobs, "DRAWN", 40)
    finder, ids = recall_kit.letters(), lambda text: tuple(encode(" " + text.strip().lower()))[:64]
    margin = recall_jobs.calibrated(finder, tellings, ids, 5, **called)
    rng, leads = random.Random("5 margin"), []
    for _ in range(40):
        message, among = recall_jobs._idle(rng, tellings)
        assert message not in among and among
        scores, nothing = finder.scores(ids(message), [ids(text) for text in among])
        leads.append(float(scores.max()) - nothing)
    assert sum(lead >= margin - 1e-3 for lead in leads) == count and len({round(lead, 3) for lead in leads}) > 20
