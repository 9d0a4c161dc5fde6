"""Training's own ways to tell and ask: nothing that validation holds out, whatever stands around it, and values from a whole vocabulary."""

import random
import re

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


def held_out_values():
    return {v.lower() for fact in FACTS.values() if len(fact.values) >= 20 for v in parts(fact.values, "validation")}


def test_held_out_values_stay_out():
    held = held_out_values()
    assert held & {word.lower() for word in NAMES + WORDS}, "the vocabulary given here has some of them"
    for told, _, asked in some():
        assert told.value.lower() not in held - {"violet"}, "a name of training is a color held out"
        assert not held & set(told.other.lower().split()), told
        assert not held & set(re.findall(r"\w+", asked.lower())) - {"violet"}, asked
    plain = Varied()
    plain.held = frozenset()  # the negative control: held-out pets have names
    rng = random.Random(0)
    assert held & {plain.draw(rng).other for _ in range(2000)}


def validation(told, templates):
    """Held-out phrasings with the very words that were drawn, without their last mark, lower-cased."""
    return [s.format(v=told.value, w=told.other).rstrip(".?").lower() for s in phrasings(templates, "validation")]


def leaks(varied, n=6000):
    rng = random.Random(4)
    found = []
    for _ in range(n):
        told = varied.draw(rng)
        said, asked = varied.say(rng, told).lower(), varied.ask(rng, told).lower()
        for fact in FACTS.values():
            found += [s for s in validation(told, fact.told) if s in said] + [s for s in validation(told, fact.asked) if s in asked]
    return found


def test_held_out_phrasings_stay_out():
    rng = random.Random(3)
    varied = Varied(NAMES, WORDS)
    for kind in FACTS:  # what validation says is recognised, also with something around it
        told = draw_fact(rng, "validation", kind)
        assert varied.held_out.search("By the way, " + say(rng, told, "validation"))
        assert varied.held_out.search(ask_plainly(rng, told, "validation") + " Please.")
        assert not varied.held_out.search(ask_plainly(rng, told, "train"))
    assert not leaks(varied)
    varied.held_out = re.compile("(?!)")  # the negative control: what is not recognised is said sooner or later
    assert leaks(varied)


def test_values_come_from_the_vocabulary_too():
    values = {told.value for told, _, _ in some()}
    assert {"Zanzib", "Marlin", "lantern", "vortex"} <= values and values & set(parts(FACTS["name"].values, "train"))
    listed = {v for fact in (*FACTS.values(), *NEW.values()) for v in fact.values}
    drawn = {told.value for told in (Varied().draw(random.Random(i)) for i in range(500))}
    assert {v for v in drawn if not v.isdigit()} <= listed | set(FACTS["name"].values) | set(FACTS["city"].values)


@pytest.mark.parametrize("seed", range(3))
def test_ordinary_questions(seed):
    rng = random.Random(seed)
    asked = {question(rng) for _ in range(400)}
    assert len(asked) > 100 and all("{" not in q for q in asked)
