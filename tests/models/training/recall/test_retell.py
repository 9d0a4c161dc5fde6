"""Training an opening, at toy size, against what a session reads; and what it is trained on."""

import random
from dataclasses import replace

import numpy as np
import pytest
import recall_kit
import tiny
import torch
from recall_training_kit import SHOWN, decoder, retell

from lm2 import Sampling, Session
from lm2.models.opening import Opening
from lm2.models.tasks.natural import talk
from lm2.models.tasks.natural.answers import mentions
from lm2.models.training import frozen, retell_task
from lm2.models.training.retell_task import Sample
from lm2.models.training.tellings import Asked, Said, Telling
from lm2.runtime.loading import load


def test_retell_learns(folder, begun):
    task = retell(folder, begun)
    samples = [
        Sample([Said("My dog is Rex."), Said("I am 30.")], "What is my dog called?", "Rex.", "Rex"),
        Sample([Said("I am 30.")], "Why?", retell_task.UNSAID, ""),
    ]
    first = float(task.loss(samples).loss.detach())
    optimizer = torch.optim.AdamW(task.maps.parameters(), lr=0.05)
    for _ in range(40):
        optimizer.zero_grad()
        task.loss(samples).loss.backward()
        optimizer.step()
    last = task.loss(samples)
    print(f"loss {first:.3f}, after 40 steps {float(last.loss.detach()):.3f}")
    assert float(last.loss.detach()) < 0.9 * first and {name: len(hits) for name, hits in last.hits.items()} == {
        "told": 1,
        "taken": 1,
        "left": 1,
    }
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in task.maps.parameters())


def session_logits(model, passages, question, answer):
    """Logits of each choice while a session's window beside reads `answer` after passages and question."""
    from lm2.runtime.session.beside import Side

    session = Session(model, sampling=Sampling(temperature=0.0), seed=0)
    ids = session.wording.turn(model.recall.message(passages, question), first=False)
    side = Side.opened(model.backend, model.recall, ids, [])
    at, out = side.feeder.logits(side.at), []
    for token in (*answer, None):
        out.append(at.logits)
        if token is not None:
            at = side.feeder.flush(at._replace(pending=(token,)))
    return np.array(out)


def task_logits(task, passages, question, answer):
    """The same as training computes them, between other samples of the step."""
    ids = [*task.message(passages, question), *answer]
    with torch.no_grad():
        states = frozen.states(task.model, task.tables, [ids[:7], ids, ids[3:]], task.maps)
        return task.model.lm_head(states).float()[6 + len(ids) - len(answer) : 7 + len(ids)].numpy()


PASSAGES, QUESTION = ["My cousin Aurel keeps two llamas.", "we've painted the\nkitchen sage"], "What did we paint?"


@pytest.mark.parametrize("cell", ["gated", "gated-topics", *tiny.BACKBONES])
def test_training_reads_what_a_session_reads(tmp_path, cell):
    """Every logit of an answer, with the opening that training writes; other wording, order or opening is seen."""
    folder = decoder(tmp_path / "model", cell)
    loaded = load(folder, "torch", device="cpu", threads=1)
    usual = recall_kit.recall(
        loaded.config, lead=retell_task.LEAD, item=retell_task.ITEM, ask=retell_task.ASK, opening=recall_kit.opening(loaded.config, 9)
    )
    task = retell(folder, usual)
    with torch.no_grad():
        for p in task.maps.parameters():
            p += 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
        layers = [task.maps.layer(i) for i in range(loaded.config.num_hidden_layers)]
    exact = Opening(*(torch.cat([layer[j] for layer in layers]).detach().numpy() for j in (0, 1)))
    assert all(np.array_equal(a.astype(np.float16), b) for a, b in zip(exact, task.maps.opening(), strict=True)), (
        "which is written in halves"
    )
    model = replace(loaded, recall=usual._replace(opening=exact))
    answer = list(b"Sage, the kitchen was painted in sage.")
    want = session_logits(model, PASSAGES, QUESTION, answer)
    got = task_logits(task, PASSAGES, QUESTION, answer)
    gap = np.abs(got - want).max()
    others = {
        "another order": task_logits(task, PASSAGES[::-1], QUESTION, answer),
        "another question": task_logits(task, PASSAGES, QUESTION + "?", answer),
        "another lead": session_logits(replace(model, recall=model.recall._replace(lead="You told me:\n")), PASSAGES, QUESTION, answer),
        "another opening": session_logits(replace(model, recall=usual), PASSAGES, QUESTION, answer),
        "no first blank": session_logits(replace(model, recall=model.recall._replace(item="-")), PASSAGES, QUESTION, answer),
    }
    far = {name: np.abs(other - want).max() for name, other in others.items()}
    print(f"{cell}: largest gap {gap:.2e}, {far}")
    assert got.shape == want.shape == (len(answer) + 1, loaded.config.vocab_size)
    assert gap < 1e-4 < 0.1 < min(far.values())


def test_an_opening_begins_as_what_is_shown(folder, begun):
    """Keys and values of SHOWN, read by the backbone: a window that opens with them is one that was fed their tokens."""
    task = retell(folder, begun, fresh=True)
    passages, question, answer = SHOWN[0]
    ids = [*task.words.first(begun.message(list(passages), question)), *task.words.plain(answer), *task.words.closing]
    opening = task.maps.opening()
    assert opening.positions == len(ids)
    backend = load(folder, "torch", device="cpu", threads=1, memory=False).backend
    _, fed = backend.extend(np.array(ids), backend.start(1, None, 400, len(ids)))
    more = np.arange(60, 80)
    want, _ = backend.extend(more, fed, all_logits=True)
    got, _ = backend.extend(more, backend.start(1, None, 400, opening=opening), all_logits=True)
    assert np.abs(got - want).max() < 5e-3
    half = backend.start(1, None, 400, opening=opening._replace(keys=opening.values, values=opening.keys))
    assert np.abs(backend.extend(more, half, all_logits=True)[0] - want).max() > 0.02


def test_samples_have_what_is_asked_once(folder, begun):
    """The answer's value stands in the passages of its telling and in no other; where none has it, nothing is to be said."""
    task = retell(folder, begun)
    rng, kinds = random.Random(1), {"one": 0, "two": 0, "unsaid": 0}
    for _ in range(200):
        sample = task.sample(rng)
        kinds["unsaid" if not sample.value else "one" if len(sample.passages) == 1 else "two"] += 1
        assert 1 <= len(sample.passages) == len(set(sample.passages)) <= 2
        if not sample.value:
            assert sample.answer == retell_task.UNSAID and len(sample.passages) == 1
        elif len(sample.passages) == 2 and sum(mentions(p.text, sample.value) for p in sample.passages) != 1:
            assert any("not" in p.text or sample.value in p.text for p in sample.passages), sample  # a correction may name both
    assert all(kinds.values()) and 50 < kinds["unsaid"] < 110, kinds


def test_what_may_answer_is_no_wrong_passage(folder, begun):
    task = retell(folder, begun)
    cat = Telling(("My cat is called Mina.",), (), frozenset({"cat"}))
    task.pool = [cat, Telling(("My cat's name is Rufus.",), (), frozenset({"cat", "dog"})), Telling(("Mina came by.",), (), frozenset({"visit"})),
                 Telling(("I sleep till nine.",), (), frozenset({"sleep"}))]  # fmt: skip
    task._pool_ids = [task.ids(told.said.whole) for told in task.pool]
    rng = random.Random(1)
    assert {task._beside(rng, "What is my cat called?", cat, "Mina") for _ in range(40)} == {Said("I sleep till nine.")}
    task.pool = task.pool[:3]
    assert task._beside(rng, "What is my cat called?", cat, "Mina").text in {*talk.ordinary("train"), *talk.idle()}


def test_replies_go_with_what_they_reply_to(folder, begun, monkeypatch):
    """A message that replies is drawn with its question; of the others a share has a question before it all the same, which they do not answer."""
    task, stray = retell(folder, begun), "Which of these would you like?"
    task.tellings.asking = [stray]
    telling = Telling(
        ("Three please",),
        (Asked("How many nights do I stay?", "You stay three.", "Three", ""),),
        frozenset({"nights"}),
        before="How many nights?",
    )
    monkeypatch.setattr(task.tellings, "draw", lambda rng: telling)
    rng = random.Random(2)
    drawn = [p for _ in range(300) for p in task.sample(rng, pairs=0.0).passages]
    replies = [p for p in drawn if p.text == "Three please"]
    assert len(replies) > 100 and all(p.before == "How many nights?" and p.whole == "How many nights? Three please" for p in replies)
    others = [bool(p.before) for p in drawn if p.before in ("", stray)]
    assert 0.05 < sum(others) / len(others) < 0.3


def test_odds_are_those_of_a_session(folder, begun):
    """As a session reads a passage, so does training when it sets how much doubt is too much."""
    from lm2.runtime.session.beside import Side

    task = retell(folder, begun)
    model = replace(load(folder, "torch", device="cpu", threads=1), recall=begun)
    session, passage, question = Session(model), "My dog is Rex.", "Who is Rex?"
    side = Side.opened(model.backend, begun, session.wording.turn(begun.message([passage], question), first=False), [])
    assert (
        abs(task.odds([passage], question) - side.odds(task.unsaid))
        < 1e-3
        < abs(task.odds(["I am 30."], question) - side.odds(task.unsaid))
    )
