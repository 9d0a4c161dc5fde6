"""Batches of stories: targets stand where the next token is, facts are marked, and training reads what a session reads."""

import numpy as np
import pytest
import training_kit
from training_kit import BOOK, QA4

from lm2.models.tasks.recall import PEOPLE, ROOMS, conversations
from lm2.models.tasks.world import Question
from lm2.models.training import vocabulary
from lm2.models.training.speech import ASSISTANT, END, USER
from lm2.models.training.stories import IGNORED

WEIGHTS = {"qa1": 1.0, "qa2": 1.0, "qa3": 1.0, "qa4": 1.0, "qa5": 1.0}


def batches(n=40, **options):
    words = training_kit.Words()
    stories = training_kit.stories(words, fixed=[QA4], book=BOOK, weights=WEIGHTS, **options)
    return words, stories, [stories.batch(training_kit.rng(seed), 4, 3, 2) for seed in range(n)]


def test_targets_are_the_next_tokens():
    words, stories, made = batches()
    answers, any_target = set(), [0, 0]
    for batch in made:
        assert batch.ids.shape == (4, 3, 40) and batch.targets.shape == batch.asked.shape
        for ids, targets in ((batch.asked, batch.targets), (batch.local, batch.local_targets)):
            there = targets != IGNORED
            assert not there[..., -1].any()
            any_target[ids is batch.local] += there.sum()
            assert (targets[..., :-1][there[..., :-1]] == ids[..., 1:][there[..., :-1]]).all()
        width = batch.asked.shape[-1]
        for ids, targets, task in zip(batch.asked.reshape(-1, width), batch.targets.reshape(-1, width), np.ravel(batch.tasks), strict=True):
            answer = targets[targets != IGNORED]
            assert bool(task) == bool(len(answer))
            if task:
                at = int(np.argmax(targets != IGNORED))
                assert ids[0] == stories.user and ids[at] == stories.assistant and answer[-1] == stories.end
                assert words.text(ids[at + 1 : at + 1 + len(answer)]) == words.text(answer)
                answers.add((task, words.text(answer[:-1])))
    assert min(any_target) > 20, "asked of the memory, and within a chunk"
    assert {task for task, _ in answers} == set(WEIGHTS) and len(answers) > 15


def test_marks_are_on_facts():
    words, _, made = batches()
    marked, others = [], []
    for batch in made:
        assert (batch.lengths <= 40).all() and (batch.lengths[:, -1] > 0).all(), "empty chunks come first"
        place = np.arange(40)
        assert not batch.facts[place >= batch.lengths[..., None]].any()
        assert (batch.subjects[~batch.facts] == IGNORED).all(), "a subject is of a fact"
        for ids, facts, n in zip(batch.ids.reshape(-1, 40), batch.facts.reshape(-1, 40), batch.lengths.ravel(), strict=True):
            marked += words.text(ids[:n][facts[:n]]).split()
            others += words.text(ids[:n][~facts[:n]]).split()
    for word in (*ROOMS, "Mary", "John", "north"):
        assert word in marked and word not in others, word
    for word in (END, USER, ASSISTANT, "captain", "Ok"):
        assert word in others and word not in marked, word


def test_questions_follow_from_what_was_told_so_far():
    """Every answer about a person is the last place told before the question, over all chunks so far."""
    words = training_kit.Words()
    stories = training_kit.stories(words)
    checked = 0
    for seed in range(30):
        streams = stories.stream(training_kit.rng(seed), 4, 3)
        assert all(len(chunk.ids) == len(chunk.facts) <= 40 for chunk in streams)
        told = words.text([i for chunk in streams for i, fact in zip(chunk.ids, chunk.facts, strict=True) if fact])
        place = {s.split()[0]: s.split()[-1] for s in told.split(" .")[:-1]}  # whole sentences: the last may be cut
        assert set(place) <= set(PEOPLE) and set(place.values()) <= set(ROOMS)
        for q in streams[-1].questions:
            checked += 1
            assert place[q.text.removeprefix("Where is ").rstrip("?")] == q.answer
    assert checked > 60


def test_seeds():
    _, _, one = batches(2)
    _, _, two = batches(2)
    assert np.array_equal(one[0].ids, two[0].ids) and not np.array_equal(one[0].ids, one[1].ids)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A model folder with lm2-tiny's kind of tokenizer and template."""
    import json

    import tiny

    from lm2.models.weights import random_model, save_folder

    tokenizer = vocabulary.train(None, 700)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    end = tokenizer.token_to_id(END)
    save_folder(random_model(tiny.config(chunk=64, vocab=tokenizer.get_vocab_size(), eos_token_id=(end,)), 1), folder)
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    (folder / "chat_template.jinja").write_text(vocabulary.TEMPLATE)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [end]}))
    return folder


def test_training_and_sessions_agree_on_the_ids(model_folder):
    """A recall conversation through the model's template and tokenizer gives the ids that training makes of the same words."""
    from lm2.runtime.evaluation.render import Renderer
    from lm2.runtime.loading import load

    model = load(model_folder, "torch", device="cpu", threads=1)
    renderer = Renderer(model)
    stories = training_kit.stories(lambda text: list(model.encode(text)), size=64)
    for sample, _ in zip(conversations("story", 0, "validation", 2, renderer.count, 64), range(5), strict=False):
        for turns in sample.chunks:
            (rendered,) = renderer.chunks(turns)
            text = turns[0].content
            sentences = [s + "." for s in text.removesuffix(".").split(". ")]
            trained = [stories.user, *(i for s in sentences for i in stories.tokens(s)), *stories.ok]
            assert list(rendered) == trained
        question = Question(sample.question, sample.answer, "qa1")
        ids, begin = stories.exchange(question)
        assert list(renderer.question(sample.question)) == ids[:begin]
        assert [*ids[:begin], *model.encode(" " + sample.reply)] == ids[:-1] and ids[-1] == stories.end
    assert list(model.encode("Mary moved")) == list(model.encode(" Mary moved")), "a first word has its blank"
