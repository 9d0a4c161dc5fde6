"""Threads and questions: where facts stand, what is asked, and that nothing held out is drawn."""

import json
import random

import pytest
import tiny_tokenizer
import training_kit

from lm2.models.tasks.natural import dialogues, kinds
from lm2.models.training import people
from lm2.models.training.plan import TrainError

TURNS = [
    {"role": "user", "content": "A table in Ghent please, for nine people.", "slots": [["Eat_1.city", 11, 16], ["Eat_1.seats", 29, 33]]},
    {"role": "assistant", "content": "When shall it be?"},
    {"role": "user", "content": "Make that eight people.", "slots": [["Eat_1.seats", 10, 15]]},
    {"role": "assistant", "content": "Noted."},
]


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    home = tmp_path_factory.mktemp("marked")
    (home / "x_schema.json").write_text(json.dumps({"Eat_1.city": "City to eat in", "Eat_1.seats": "Number of people at the table"}))
    (home / "x_slots.jsonl").write_text(json.dumps({"id": "1", "services": ["Eat_1"], "turns": TURNS}) + "\n")
    return list(dialogues.dialogues(home))


def text(ids):
    return bytes(i for i in ids if i < 256).decode()


def test_facts_stand_where_they_are_said(marked):
    threads = training_kit.people(marked)
    rng = random.Random(3)
    seen, placed = 0, 0
    for _ in range(10):
        thread = threads.thread(rng, 1200, 0.8)
        assert len(thread.quiet) == len(thread.ids) and thread.ids[: thread.head] == threads.head
        for fact in thread.facts:
            message = text(thread.ids[fact.begin : fact.end])
            assert fact.value.lower() in message.lower() and message.startswith("user\n") and set(thread.quiet[fact.begin : fact.end]) == {0.0}
            seen += 1
            if fact.at is not None:
                placed += 1
                assert text(thread.ids[slice(*fact.at)]).strip().lower() == fact.value.lower()
    assert seen > 50 and placed > 0.9 * seen


def test_of_a_value_told_twice_the_later_is_asked_for(marked):
    threads = training_kit.people(marked)
    rng = random.Random(0)
    for _ in range(200):
        thread = threads.thread(rng, 600, 1.0)
        for fact in thread.facts:
            if fact.key == ("marked", "Eat_1.seats") and "Make that" in text(thread.ids):
                return
    pytest.fail("a dialogue with a correction was never drawn")


def test_a_question_ends_in_its_value():
    threads = training_kit.people()
    rng = random.Random(1)
    thread = threads.thread(rng, 2000, 0.9)
    for fact in thread.facts:
        asked = threads.question(rng, fact)
        assert text(asked.targets[p] for p in asked.value).strip().lower() == fact.value.lower() or not asked.value
        assert [t for t in asked.targets if t >= 0] == asked.ids[-sum(t >= 0 for t in asked.targets) :]
        assert asked.fact is fact and any(q in text(asked.ids) for q in fact.questions)


def test_nothing_held_out_is_drawn():
    threads = training_kit.people()
    rng = random.Random(5)
    held = set(kinds.kinds("heldout"))
    keys = {fact.key[0] for _ in range(15) for fact in threads.thread(rng, 1200, 0.9).facts}
    assert len(keys) > 50 and not keys & held


def test_the_backbones_answers_are_kept(tmp_path):
    """They are asked for once, and refused of another backbone."""
    tokenizer = tiny_tokenizer.library()

    class Text:
        vocabulary, ends = (lambda self: {}), (lambda self: ())

        def decode(self, ids, skip_special):
            return tokenizer.decode(ids)

    model = training_kit.model(vocab=tiny_tokenizer.VOCAB, chunk=64).eval()
    said: list[str] = []
    asked = ["Hi?", "And?"]
    prompts = [[*q.encode()] for q in asked]
    first = people._answers(model, "k", Text(), asked, prompts, tmp_path / "a.json", said.append)
    assert len(said) == 1 and set(first) == set(asked)
    assert people._answers(model, "k", Text(), asked, prompts, tmp_path / "a.json", said.append) == first and len(said) == 1
    with pytest.raises(TrainError, match="has answers of backbone k, this one is other: remove it"):
        people._answers(model, "other", Text(), asked, prompts, tmp_path / "a.json", said.append)
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(TrainError, match=r"a\.json is not a file of answers"):
        people._answers(model, "k", Text(), asked, prompts, tmp_path / "a.json", said.append)
