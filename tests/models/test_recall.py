"""Recall's conversations: a function of the seed, facts where they are said to be, chunks that fit, parts that share nothing held out."""

import random
import re
from itertools import islice

import pytest

from lm2.models.tasks.fillers import exchanges, sentences
from lm2.models.tasks.recall import KINDS, PEOPLE, ROOM_FOR_TEMPLATE, ROOMS, conversations, draw_fact
from lm2.models.tasks.words import FACTS, parts, phrasings

MOVED = re.compile(rf"({'|'.join(PEOPLE)}) \w+(?: \w+)?(?: to)? the ({'|'.join(ROOMS)})\.")
CHUNKS = {"story": 64, "chat": 256}


def count(text):
    """Words and marks."""
    return len(re.findall(r"\w+|[^\w\s]", text))


def some(kind, n=40, seed=0, split="validation", distance=3, before=2, chunk=None):
    return list(islice(conversations(kind, seed, split, distance, count, chunk or CHUNKS[kind], before), n))


@pytest.mark.parametrize("kind", KINDS)
def test_a_function_of_the_seed(kind):
    one = some(kind)
    assert one == some(kind) and len(set(one)) == len(one)
    for other in (some(kind, seed=1), some(kind, split="train"), some(kind, distance=2)):
        assert not set(one) & set(other)
    assert one[:5] == some(kind, 5), "a sample does not depend on how many are drawn"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("distance", [1, 2, 5])
def test_the_fact_is_told_where_it_is_said(kind, distance):
    earlier = set()
    for sample in some(kind, distance=distance):
        told = len(sample.chunks) - distance
        earlier.add(told)
        assert sample.distance == distance and sample.answer in sample.labels and sample.answer in sample.reply
        text = [" ".join(turn.content for turn in chunk if turn.role == "user") for chunk in sample.chunks]
        if kind == "story":
            asked = re.fullmatch(r"Where is (\w+)\?", sample.question)[1]
            moves = [[room for who, room in MOVED.findall(part) if who == asked] for part in text]
            assert moves[told] and moves[told][-1] == sample.answer, "the last move counts"
            assert not any(moves[told + 1 :]), "nobody who is asked for moves afterwards"
        else:
            statements = [s for s in FACTS[sample.kind].told if s.format(v=sample.answer, w="W").replace("W", "") in text[told]]
            words = [
                phrasings(FACTS[sample.kind].told, "validation")[0].format(v=sample.answer, w=w) for w in FACTS[sample.kind].others or ("",)
            ]
            assert statements or any(w in text[told] for w in words)
            for c, part in enumerate(text):
                assert c == told or not any(w in part for w in words)
    assert earlier == {0, 1, 2}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_chunks_fit(kind, split):
    sizes = []
    for sample in some(kind, split=split):
        for chunk in sample.chunks:
            around = ROOM_FOR_TEMPLATE if kind == "story" else ROOM_FOR_TEMPLATE * (len(chunk) // 2)
            own = [t for t in chunk if kind == "chat" or t.role == "user"]
            sizes.append(sum(count(t.content) for t in own) + around)
            assert [t.role for t in chunk] == ["user", "assistant"] * (len(chunk) // 2)
    assert max(sizes) <= CHUNKS[kind] and min(sizes) > CHUNKS[kind] // 2, "and are filled"


def test_phrasings_and_values_are_held_out():
    rng = random.Random(0)
    shared = []
    for kind, fact in FACTS.items():
        assert not set(phrasings(fact.told, "train")) & set(phrasings(fact.told, "validation"))
        assert not set(phrasings(fact.asked, "train")) & set(phrasings(fact.asked, "validation"))
        values = {split: {draw_fact(rng, split, kind).value for _ in range(600)} for split in ("train", "validation")}
        assert values["train"] | values["validation"] <= set(fact.values)
        if len(fact.values) >= 20:
            assert not values["train"] & values["validation"], kind
        else:
            shared.append(kind)
    assert 0 < len(shared) < len(FACTS) // 2 + 1, "few kinds have too few values to hold some out"


def test_other_talk_is_held_out():
    rng = random.Random(0)
    for make in (sentences, exchanges):
        train, held = (set(islice(make(rng, split), 3000)) for split in ("train", "validation"))
        assert not train & held and len(held) >= 16
    assert set(parts(tuple(range(20)), "train")) | set(parts(tuple(range(20)), "validation")) == set(range(20))


def test_samples_of_the_parts_share_no_statement():
    def said(split):
        return {t.content for s in some("chat", 80, split=split) for chunk in s.chunks for t in chunk if t.role == "user"}

    assert not said("train") & said("validation")


@pytest.mark.parametrize(("kind", "split", "distance"), [("poem", "train", 1), ("chat", "test", 1), ("story", "train", 0)])
def test_wrong_requests(kind, split, distance):
    with pytest.raises(ValueError, match=f"kind {kind!r}, split {split!r}, distance {distance}"):
        next(conversations(kind, 0, split, distance, count, 64))
