"""Streams for BABILong's tasks: chunks as evaluation makes them, facts marked where they end, questions that follow from what was told; and a model
learns from them."""

import random
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
import training_kit
from training_kit import BOOK, QA4

from lm2.models.tasks import babilong
from lm2.models.tasks.fillers import sentences
from lm2.models.tasks.knowing import Reader, wanted
from lm2.models.tasks.world import DROPS, GIVES, MOVES, OBJECTS, PEOPLE, ROOMS, TAKES
from lm2.models.training import run as loop
from lm2.models.training import start
from lm2.models.training.fact_task import FactTask
from lm2.models.training.facts import WEIGHTS, FactStreams, Told
from lm2.models.training.plan import Plan, Stage
from lm2.models.training.speech import ASSISTANT, END, USER
from lm2.models.training.stories import IGNORED

SIZE = 40


def streams(words=None, weights=WEIGHTS):
    return FactStreams(words or training_kit.Words(), SIZE, [QA4], BOOK, weights)


def test_chunks_are_those_of_evaluation():
    """The same sentences through tasks/babilong.py's pieces fall into the same chunks, each with the user's mark before and Ok. after."""
    words = training_kit.Words()
    made, compared = streams(words), 0
    for seed in range(30):
        chunks = made.stream(random.Random(seed), 6, 0, seed % 2 == 1)
        if any(chunk.ids.count(made.user) > 1 for chunk in chunks):
            continue  # messages of a sentence each
        compared += 1
        bodies = [words.text(c.ids[1 : -len(made.ok)]) for c in chunks]
        assert all(c.ids[0] == made.user and c.ids[-len(made.ok) :] == made.ok and len(c.ids) <= SIZE for c in chunks)
        text = [s.strip() + " ." for s in " ".join(bodies).split(" .") if s.strip()]
        again, _ = babilong.pieces(text, lambda text: len(text.split()), made.room)
        assert again[: len(bodies)] == bodies
    assert 15 < compared < 30, "some are told in several messages a chunk"


def test_facts_and_questions():
    words = training_kit.Words()
    made = streams(words)
    tasks, facts_in_books = set(), 0
    for seed in range(60):
        chunks = made.stream(random.Random(seed), 6, 3, seed % 2 == 1)
        reader = Reader()
        for chunk in chunks:
            spoken, begin = [], 1
            for i, token in enumerate(chunk.ids):
                if token == words.ids["."] and chunk.ids[i - 1] != words.ids["Ok"]:
                    spoken.append((i, words.text(chunk.ids[begin : i + 1])))
                    begin = i + 1
                elif token == made.user:
                    begin = i + 1
            facts = {fact.place: (fact.known, fact.number) for fact in chunk.facts}
            for place, text in spoken:
                if "captain" in text or place not in facts:
                    assert "captain" in text or text.split()[1] not in ("moved", "went", "took", "gave", "is"), text
                    continue
                assert facts.pop(place) == (reader.tell(text.replace(" .", ".")), reader.facts)
                facts_in_books += seed % 2
            assert not facts, "every fact ends in a period"
            for question, _ in chunk.questions:
                tasks.add(question.task)
                if question.task != "qa4":
                    drawn = {q.text: q.answer for q in (reader.world.questions(random.Random(k), question.task) for k in range(200))}
                    assert drawn[question.text] == question.answer
    assert tasks == set(WEIGHTS) and facts_in_books > 50


def test_rows_to_read():
    """What a fact should read is the last sentence about its subject in an earlier chunk; what a question should read names what is asked for."""
    words = training_kit.Words()
    made = streams(words)
    follow, things, sources = 0, 0, set()
    for seed in range(40):
        chunks = made.stream(random.Random(seed), 6, 3, seed % 2 == 1)
        text = {}
        for c, chunk in enumerate(chunks):
            begins = [i for i, token in enumerate(chunk.ids) if token in (words.ids["."], made.user)]
            for fact in chunk.facts:
                begin = max(i for i in begins if i < fact.place)
                text[c, fact.place] = words.text(chunk.ids[begin + 1 : fact.place])
            for fact in chunk.facts:
                subject = text[c, fact.place].split()[0]
                earlier = [at for at, said in text.items() if at[0] < c and said.startswith(subject) and subject != "The"]
                assert fact.subject == (earlier[-1] if earlier else None)
                if fact.thing is not None:
                    assert fact.thing[0] < c and fact.known.thing >= 0
                    things += OBJECTS[fact.known.thing] in text[fact.thing]
                assert fact.last == max((at for at in text if at[0] < c), default=None)
                follow += bool(earlier)
            for question, at in chunk.questions:
                said = text[at].split()
                if question.task in ("qa1", "qa4", "qa5"):
                    assert question.answer in said and question.text[:-1].split()[-1] in (*said, "to", "of"), (question, said)
                elif question.task == "qa3":
                    assert question.text[:-1].split()[-1] in said, "the sentence that brought it there"
                sources.add(question.task)
    assert follow > 100 and things > 10 and sources == set(WEIGHTS)


def test_batches():
    words = training_kit.Words()
    made = streams(words)
    batch = made.batch(random.Random(3), 5, 4, 2, books=0.5)
    assert batch.ids.shape == (5, 4, SIZE) and (batch.lengths[:, -1] > 0).all() and (batch.lengths <= SIZE).all()
    seen = 0
    for c in range(4):
        who, place, known = batch.told[c].streams, batch.told[c].places, batch.told[c].known
        assert batch.ends[who, c, place].all() and batch.ends[:, c].sum() == len(who) and known.shape == (len(who), 10)
        asked = batch.asked[c]
        if asked is None:
            continue
        there = asked.targets != IGNORED
        assert (asked.targets[..., :-1][there[..., :-1]] == asked.ids[..., 1:][there[..., :-1]]).all()
        for i, row in enumerate(asked.tasks):
            for k, task in enumerate(row):
                assert bool(task) == bool(there[i, k].any()) == bool((asked.wanted[i, k] >= 0).any())
                if task:
                    at = asked.begins[i, k]
                    assert asked.ids[i, k, at] == made.assistant and there[i, k].argmax() == at
                    text = words.text(asked.ids[i, k, 1 : at - 1]).replace(" ?", "?")
                    assert wanted(text) == tuple(asked.wanted[i, k])
                    seen += 1
    assert seen > 8
    inside = 0
    for ids, targets, chunk, n in zip(batch.within, batch.within_targets, batch.ids[:, -1], batch.lengths[:, -1], strict=True):
        there = targets != IGNORED
        assert (ids[:n] == chunk[:n]).all() and (targets[:-1][there[:-1]] == ids[1:][there[:-1]]).all() and not there[-1]
        said = words.text(targets[there]).split(END)
        assert said[0].split() == ["Ok", "."] and len(said) in (2, 3)
        inside += len(said) == 3
    assert inside, "asked in the chunk itself"
    same = streams().batch(random.Random(3), 5, 4, 2, books=0.5)
    assert np.array_equal(batch.ids, same.ids) and not np.array_equal(batch.ids, made.batch(random.Random(4), 5, 4, 2, books=0.5).ids)


PLAN = Plan("babilong", 40, 5e-3, 3, (Stage(1.0, 1, 2, 12),), warmup=5, quiet=0.1)


def task(seed=1):
    words = training_kit.Words()
    for mark in (END, USER, ASSISTANT):
        words(mark)
    for text in (
        *PEOPLE,
        *ROOMS,
        *OBJECTS,
        *MOVES,
        *TAKES,
        *DROPS,
        *GIVES,
        *BOOK,
        "The is north south east west of the Where was before? Who What did give gave to received there.",
    ):
        words(text)
    for text in islice(sentences(random.Random(0), "train"), 3000):
        words(text)  # ids are given as words come: the same ones in every run
    config = replace(start.babi_config(600, words.ids[END]), num_hidden_layers=5, hidden_size=64, intermediate_size=128, head_dim=16)
    memory = replace(config.memory, chunk=SIZE, slots=16 * SIZE, head_dim=16)
    config = replace(config, memory=memory, max_position_embeddings=SIZE)
    return FactTask(start.fresh(config, seed), streams(words, {"qa1": 0.5, "qa2": 0.3, "qa4": 0.2}), seed)


@pytest.mark.slow
def test_rows_come_to_hold_what_was_said():
    """Forty steps: the answers get likelier, and the probes find names and verbs in the rows."""
    made, rng = task(), random.Random(0)
    optimizer = torch.optim.AdamW([*made.model.parameters(), *made.aids.parameters()], lr=3e-3)
    course = []
    for _ in range(40):
        terms = made.step(PLAN.stages[0], rng)
        optimizer.zero_grad()
        (terms.loss + 0.1 * terms.quiet).backward()
        optimizer.step()
        course.append((terms.figures["answers"], terms.figures["probes"], terms.figures["gate_on_facts"]))
    first, last = np.mean(course[:4], axis=0), np.mean(course[-4:], axis=0)
    assert last[0] < 0.4 * first[0] and last[1] < 0.75 * first[1]
    assert terms.tokens > 100 and set(terms.hits) <= set(WEIGHTS) and 0 < last[2] < 1


def test_the_probes_are_kept_in_checkpoints_and_left_out_of_the_model(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_EVERY", 2)
    plan = replace(PLAN, steps=4)

    def run(out, **options):
        torch.manual_seed(0)
        made = task()
        loop.run(made, plan, out, say=lambda text: None, **options)
        return made

    whole, _ = run(tmp_path / "one"), run(tmp_path / "two", until=2)
    resumed = run(tmp_path / "two")
    for a, b in zip(
        (*whole.model.parameters(), *whole.aids.parameters()), (*resumed.model.parameters(), *resumed.aids.parameters()), strict=True
    ):
        assert torch.equal(a, b)
    fresh = task()
    assert not torch.equal(fresh.aids.say.weight, whole.aids.say.weight), "they are trained"
    assert not any("aids" in name for name, _ in whole.model.named_parameters())


@pytest.mark.parametrize("blocks", [2, 16])
def test_nothing_told_is_no_error(blocks):
    made = task()
    batch = made.streams.batch(random.Random(0), 2, 1, 1)
    batch.asked, batch.told = [None], [Told(*(x[:0] for x in vars(batch.told[0]).values()))]
    batch.ends[:], batch.within_targets[:] = False, IGNORED
    terms = made.loss(batch, blocks)
    assert float(terms.loss.detach()) == 0.0 and 0 < float(terms.quiet.detach()) < 1
