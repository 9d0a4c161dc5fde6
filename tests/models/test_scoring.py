"""Scoring of answers: whole words, other labels, lists, intervals. Cases that would go the other way if parts of words counted."""

import math

import pytest

from lm2.models.tasks.scoring import first_sentence, is_right, is_right_published, majority, mentioned, wilson

ROOMS = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
COUNTS = ("none", "one", "two", "three")


@pytest.mark.parametrize(
    ("reply", "answer", "labels", "question", "right"),
    [
        ("The garden.", "garden", ROOMS, "Where is Mary?", True),
        ("GARDEN", "garden", ROOMS, "Where is Mary?", True),
        ("the garden or the office", "garden", ROOMS, "Where is Mary?", False),
        ("the garden, not the kitchen", "garden", ROOMS, "Where was Mary before the kitchen?", True),
        ("the gardener", "garden", ROOMS, "Where is Mary?", False),
        ("In the garden. No, in the office.", "garden", ROOMS, "Where is Mary?", True),
        ("I do not know. The garden.", "garden", ROOMS, "Where is Mary?", False),
        ("the garden\nthe office", "garden", ROOMS, "Where is Mary?", True),
        ("  \n garden", "garden", ROOMS, "Where is Mary?", True),
        ("", "garden", ROOMS, "Where is Mary?", False),
        ("none", "none", COUNTS, "How many objects is Mary carrying?", True),
        ("none", "one", COUNTS, "How many objects is Mary carrying?", False),
        ("one", "none", COUNTS, "How many objects is Mary carrying?", False),
        ("someone has two", "two", COUNTS, "How many objects is Mary carrying?", True),
        ("no", "no", ("yes", "no", "maybe"), "Is Mary in the hallway?", True),
        ("I know", "no", ("yes", "no", "maybe"), "Is Mary in the hallway?", False),
        ("yes and no", "no", ("yes", "no", "maybe"), "Is Mary in the hallway?", False),
        ("Fred gave it to Bill", "Bill", ("Bill", "Fred", "Jeff", "Mary"), "Who did Fred give the apple to?", True),
        ("milk and apple", "apple,milk", ("apple", "football", "milk", "nothing"), "What is Mary carrying?", True),
        ("milk,apple", "apple,milk", ("apple", "football", "milk", "nothing"), "What is Mary carrying?", True),
        ("apple", "apple,milk", ("apple", "football", "milk", "nothing"), "What is Mary carrying?", False),
        ("apple, milk, football", "apple,milk", ("apple", "football", "milk", "nothing"), "What is Mary carrying?", False),
        ("It is dark red.", "red", ("red", "dark red"), "Which colour?", False),
        ("It is dark  red.", "dark red", ("red", "dark red"), "Which colour?", True),
        ("at 3.30 today", "3.30", ("3", "3.30", "4"), "When?", True),
        ("You live in C++.", "C++", ("C", "C++"), "Where?", True),
        ("Zoé", "zoé", ("Zo", "Zoé"), "Who?", True),
        ("a word outside the labels", "word", (), "Which?", True),
    ],
)
def test_right_or_wrong(reply, answer, labels, question, right):
    assert is_right(reply, answer, labels, question) is right


def test_first_sentence():
    assert first_sentence(" The Garden! And more.") == "the garden!"
    assert first_sentence("3.5 is a number") == "3.5 is a number"
    assert first_sentence("") == ""


def test_mentioned_takes_labels_for_text_not_for_patterns():
    assert mentioned("a.b (x) axb", ["a.b", "(x)"]) == {"a.b", "(x)"}
    assert mentioned("axb", ["a.b"]) == set()
    assert mentioned("anything", []) == mentioned("anything", [" "]) == set()


def test_majority():
    assert majority(["no", "yes", "no"]) == ("no", 2 / 3)
    assert majority(["b", "a"]) == ("a", 0.5)
    with pytest.raises(ValueError):
        majority([])


def test_wilson_against_its_equation():
    """The ends solve (share - p)^2 = z^2 p (1 - p) / n."""
    z = 1.959963984540054
    for right, count in ((1, 10), (50, 100), (99, 100), (7, 9)):
        for p in wilson(right, count):
            assert math.isclose((right / count - p) ** 2, z * z * p * (1 - p) / count, rel_tol=1e-9), (right, count, p)
    assert wilson(0, 20)[0] == 0.0 and 0.1 < wilson(0, 20)[1] < 0.2
    assert wilson(20, 20)[1] == 1.0 and wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError):
        wilson(3, 2)


def test_an_interval_holds_its_share():
    """To the last bit, since programs compare; also for shares next to 0 and 1 of many samples."""
    for count in (1, 2, 3, 7, 60, 999, 10**6, 10**12):
        for right in {0, 1, 2, count // 3, count // 2, count - 2, count - 1, count}:
            if 0 <= right <= count:
                low, high = wilson(right, count)
                assert 0 <= low <= right / count <= high <= 1, (right, count)


PUBLISHED = [
    ("The kitchen. Or the garden.", "kitchen", ROOMS, "Where is Mary?", True, True),
    ("Kitchens", "kitchen", ROOMS, "Where is Mary?", True, False),  # parts of words count there
    ("kitchen or garden", "kitchen", ROOMS, "Where is Mary?", False, False),
    ("the garden, then the kitchen", "kitchen", ROOMS, "Where was it before the garden?", True, True),
    ("none", "none", ("none", "one", "two", "three"), "How many objects?", False, True),  # its `none` has an `one` in it
    ("apple and milk", "apple,milk", ("apple", "football", "milk", "nothing"), "What is Mary carrying?", True, True),
    ("apple", "apple,milk", ("apple", "football", "milk", "nothing"), "What is Mary carrying?", False, False),
    ("kitchen<example>garden", "kitchen", ROOMS, "Where is Mary?", True, False),
]


@pytest.mark.parametrize(("reply", "answer", "labels", "question", "published", "ours"), PUBLISHED)
def test_babilongs_own_rule_beside_ours(reply, answer, labels, question, published, ours):
    assert is_right_published(reply, answer, labels, question) is published
    assert is_right(reply, answer, labels, question) is ours
