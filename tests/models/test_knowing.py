"""What each sentence says and leaves true, and what each question names, on bAbI's own wording."""

import random

import pytest

from lm2.models.tasks import world
from lm2.models.tasks.knowing import ASKED, CHOICES, FORMS, NOWHERE, UNKNOWN, VERBS, Reader, Wanted, wanted
from lm2.models.tasks.world import OBJECTS, PEOPLE, ROOMS


def told(*sentences):
    reader = Reader()
    return [reader.tell(s) for s in sentences][-1]


def test_what_a_sentence_leaves():
    mary, kitchen, garden, office = PEOPLE.index("Mary"), ROOMS.index("kitchen"), ROOMS.index("garden"), ROOMS.index("office")
    milk = OBJECTS.index("milk")
    assert told("Mary took the milk.")[:6] == (mary, VERBS.index("take"), milk, NOWHERE, NOWHERE, UNKNOWN)
    story = ["Mary went to the kitchen.", "Mary got the milk there.", "John moved to the office.", "Mary travelled to the garden."]
    assert told(*story) == (mary, VERBS.index("move"), UNKNOWN, garden, kitchen, UNKNOWN, 0, 1, 0)
    assert told(*story, "Mary moved to the garden.").before == kitchen, "who stays where she was came from where she came from"
    last = told(*story, "Mary gave the milk to John.")
    assert (last.verb, last.thing, last.taker, last.holds_milk) == (VERBS.index("give"), milk, PEOPLE.index("John"), 0)
    last = told(*story, "Mary gave the milk to John.", "John went to the kitchen.")
    assert (last.place, last.before, last.holds_milk) == (kitchen, office, 1)
    assert told(*story, "Mary put down the milk there.").holds_milk == 0
    relation = told("The garden is west of the office.")
    assert relation == (len(PEOPLE) + garden, VERBS.index("west"), UNKNOWN, office, *[UNKNOWN] * 5)
    with pytest.raises(ValueError, match="no fact"):
        told("It rained.")


def test_within_the_choices():
    for seed in range(40):
        rng = random.Random(seed)
        reader = Reader()
        sentences = world.story(rng, ("qa1", "qa2", "qa3", "qa5")[seed % 4], 30)
        for n, sentence in enumerate(sentences, 1):
            known = reader.tell(sentence)
            assert reader.facts == n and all(v == UNKNOWN or 0 <= v < size for v, size in zip(known, CHOICES, strict=True))
        for task in ("qa1", "qa2", "qa3", "qa5"):
            question = reader.world.questions(rng, task)
            if question is not None:
                named = wanted(question.text)
                assert all(v == UNKNOWN or 0 <= v < size for v, size in zip(named, ASKED, strict=True))


def test_which_fact_answers():
    story = [
        "Mary went to the kitchen.", "Mary got the milk there.", "John moved to the office.", "Mary travelled to the garden.",
        "Mary dropped the milk.", "Mary went to the kitchen.", "John journeyed to the garden.", "John took the milk.", "John moved to the kitchen.",
        "John gave the milk to Mary.", "Mary passed the milk to John.", "The office is east of the bedroom.",
    ]  # fmt: skip
    cases = [
        (6, "qa1", "Where is Mary?", "kitchen", 5), (5, "qa2", "Where is the milk?", "garden", 4), (4, "qa2", "Where is the milk?", "garden", 3),
        (9, "qa2", "Where is the milk?", "kitchen", 8), (4, "qa3", "Where was the milk before the garden?", "kitchen", 3),
        (9, "qa3", "Where was the milk before the kitchen?", "garden", 8), (12, "qa5", "Who gave the milk?", "Mary", 10),
        (12, "qa5", "Who gave the milk to Mary?", "John", 9), (12, "qa5", "What did John give to Mary?", "milk", 9),
        (12, "qa4", "What is east of the bedroom?", "office", 11), (12, "qa4", "What is the office east of?", "bedroom", 11),
    ]  # fmt: skip
    for told, task, text, answer, number in cases:
        reader = Reader()
        for sentence in story[:told]:
            reader.tell(sentence)
        assert reader.source(world.Question(text, answer, task)) == number, (told, text)
        if task not in ("qa4", "qa5"):
            assert any(reader.world.questions(random.Random(k), task) == (text, answer, task) for k in range(99))
    assert reader.history == {"Mary": [0, 1, 3, 4, 5, 10], "John": [2, 6, 7, 8, 9], "milk": [1, 3, 4, 7, 8, 9, 10]}
    for text, task in (
        ("Where is Bill?", "qa1"),
        ("Where is the apple?", "qa2"),
        ("Who gave the apple?", "qa5"),
        ("What is the office west of?", "qa4"),
    ):
        with pytest.raises(ValueError, match="no answer"):
            reader.source(world.Question(text, "garden", task))


def test_what_a_question_names():
    bill, fred, milk, kitchen = PEOPLE.index("Bill"), PEOPLE.index("Fred"), OBJECTS.index("milk"), ROOMS.index("kitchen")
    room = len(PEOPLE) + kitchen
    cases = {
        "Where is Bill?": ("where is who", bill, UNKNOWN, UNKNOWN, UNKNOWN),
        "Where is the milk?": ("where is what", UNKNOWN, milk, UNKNOWN, UNKNOWN),
        "Where was the milk before the kitchen?": ("before", UNKNOWN, milk, kitchen, UNKNOWN),
        "What is north of the kitchen?": ("north of it", room, UNKNOWN, UNKNOWN, UNKNOWN),
        "What is the kitchen west of?": ("it is west of", room, UNKNOWN, UNKNOWN, UNKNOWN),
        "What did Bill give to Fred?": ("what to whom", bill, UNKNOWN, UNKNOWN, fred),
        "Who gave the milk?": ("who gave", UNKNOWN, milk, UNKNOWN, UNKNOWN),
        "Who gave the milk to Fred?": ("who gave to", UNKNOWN, milk, UNKNOWN, fred),
        "Who received the milk?": ("who received", UNKNOWN, milk, UNKNOWN, UNKNOWN),
        "Who did Bill give the milk to?": ("to whom", bill, milk, UNKNOWN, UNKNOWN),
    }
    for text, (form, *rest) in cases.items():
        assert wanted(text) == Wanted(FORMS.index(form), *rest), text
    for text in ("Is Mary in the kitchen?", "How many objects is Mary carrying?", "Why?"):
        with pytest.raises(ValueError, match="no question"):
            wanted(text)
