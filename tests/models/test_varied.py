"""Training's own ways to tell and ask: nothing that validation holds out, whatever stands around it, and values from a whole vocabulary."""

import random

import pytest

from lm2.models.tasks.ordinary import question
from lm2.models.tasks.recall import ask as ask_plainly
from lm2.models.tasks.recall import draw_fact, reply, say
from lm2.models.tasks.varied import NEW, Varied
from lm2.models.tasks.words import FACTS, parts, phrasings

NAMES, WORDS = ["Zanzib", "Marlin", "Emma"], ["lantern", "vortex", "pancakes"]


def some(n=3000, seed=0):
    varied, rng = Varied(NAMES, WORDS), random.Random(seed)
    for _ in range(n):
        told = varied.draw(rng)
        yield told, varied.say(rng, told), varied.ask(rng, told)


def test_every_kind_is_told_and_asked():
    kinds = set()
    for told, said, asked in some():
        kinds.add(told.kind)
        assert told.value.lower() in said.lower() and told.value.lower() in reply(told).lower() and told.value not in asked.split()
        assert not told.fact.others or told.other in said
        assert said[0].isupper() or said[0].isdigit(), said
        assert asked[0].isupper() and asked[-1] in "?." and "{" not in said + asked and "@" not in asked
    assert kinds == set(FACTS) | set(NEW)


def test_a_function_of_the_seed():
    assert list(some(50)) == list(some(50)) != list(some(50, seed=1))


def test_held_out_values_stay_out():
    held = {v for fact in FACTS.values() if len(fact.values) >= 20 for v in parts(fact.values, "validation")}
    assert "Emma" in held or "pancakes" in held, "the vocabulary given here has some of them"
    assert not {told.value for told, _, _ in some()} & held


def test_held_out_phrasings_stay_out():
    rng = random.Random(3)
    varied = Varied(NAMES, WORDS)
    for kind in FACTS:  # the negative control: what validation says is recognised, also with something around it
        told = draw_fact(rng, "validation", kind)
        assert varied.held_out.search("By the way, " + say(rng, told, "validation"))
        assert varied.held_out.search(ask_plainly(rng, told, "validation") + " Please.")
        assert not varied.held_out.search(ask_plainly(rng, told, "train"))
    sentences = {s.split("{")[0] for f in FACTS.values() for s in phrasings(f.asked, "validation")}
    for _, said, asked in some():
        assert not varied.held_out.search(said) and not varied.held_out.search(asked)
        assert asked not in sentences


def test_values_come_from_the_vocabulary_too():
    values = {told.value for told, _, _ in some()}
    assert {"Zanzib", "Marlin", "lantern", "vortex"} <= values and values & set(parts(FACTS["name"].values, "train"))
    plain = Varied()
    assert {plain.draw(random.Random(i)).value for i in range(300)}


@pytest.mark.parametrize("seed", range(3))
def test_ordinary_questions(seed):
    rng = random.Random(seed)
    asked = {question(rng) for _ in range(400)}
    assert len(asked) > 100 and all("{" not in q for q in asked)
