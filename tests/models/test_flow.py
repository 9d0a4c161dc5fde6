"""Conversations for training: each tells what its answers say, the form of the files is checked, and nothing held out is in them."""

import random
import re

import pytest

from lm2.models.tasks.natural import flow, kinds, talk, values
from lm2.models.tasks.natural.answers import is_told, mentions, normal
from lm2.models.tasks.natural.errors import CorpusError
from lm2.models.tasks.varied import Varied
from lm2.models.training.tellings import Tellings

from .test_natural import grams

GOOD = "[the boiler]\nHe can't come till the 19th\n? When is the boiler man coming?\n? what day is the heating seen to\n= He comes on {the 19th}.\nMild today\n"


def test_every_conversation_tells_what_is_asked():
    found = flow.flows()
    assert len(found) >= 250 and sum(len(a) for f in found for a in f.asked) >= 3000
    for f in found:
        for message, asked in zip(f.messages, f.asked, strict=True):
            for a in asked:
                assert a.value.lower() in message.lower() and mentions(a.reply, a.value) and is_told(a.reply, a.value), (f.title, a)


def test_nothing_held_out_is_in_them():
    train = {n: set().union(*(grams(m, n) for f in flow.flows() for m in f.messages)) for n in (4, 6)}
    held = [s for kind in kinds.kinds("heldout").values() for s in (*kind.statements, *kind.corrections)]
    for name, messages in (("kinds", held), ("talks", [m for t in talk.talks() for m in t.messages]), ("unseen", [m for t in talk.unseen() for m in t.messages])):
        for n, most in ((4, 0.02), (6, 0.0)):
            mine = [g for s in messages for g in grams(s, n)]
            assert sum(g in train[n] for g in mine) / len(mine) <= most, (name, n, [g for g in mine if g in train[6]][:5])
    names = {normal(a.value) for t in (*talk.talks(), *talk.unseen()) for a in t.questions if a.value[0].isupper()} - {day.lower() for day in values.lists()["weekday"]}
    assert not names & {normal(a.value) for f in flow.flows() for asked in f.asked for a in asked}


def test_a_message_may_reply_to_a_question(tmp_path):
    file = tmp_path / "talks_train_x.txt"
    file.write_text(GOOD.replace("He can't", "< When can he come?\nHe can't"), encoding="utf-8")
    (read,) = flow.read_flows([file])
    assert read.before == ("When can he come?", "") and read.messages == ("He can't come till the 19th", "Mild today")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[the boiler]\n", ""), "before the first [title]"),
        (("He can't come till the 19th\n", ""), "before the first message"),
        (("? what day is the heating seen to\n", ""), "1 different questions"),
        (("? what day is the heating seen to", "? When is the boiler man coming?"), "none twice"),
        (("? When is the boiler man coming?", "? Is he coming on the 19th?"), "names its value"),
        (("{the 19th}", "the 19th"), "one value in braces"),
        (("{the 19th}", "{the 20th}"), "does not stand in its message"),
        (("= He comes on {the 19th}.\n", ""), "have no `= answer`"),
        (("Mild today", "He can't come till the 19th"), "stands twice"),
        (("Mild today", "?what"), "a blank is missing"),
        (("Mild today", "[the boiler]\nAgain"), "[the boiler] stands twice"),
        (("Mild today", "[another]\nAgain"), "tells nothing that is asked for"),
        (("Mild today\n", "? what\n"), "the last questions have no"),
        (("Mild today\n", "< And the roof?\n"), "no message replies to 'And the roof?'"),
        (("Mild today\n", "< And the roof?\n< When?\nMild today\n"), "no message replies to 'And the roof?'"),
        (("Mild today\n", "< the roof\nMild today\n"), "< asks nothing"),
    ],
)
def test_a_file_is_checked(tmp_path, change, message):
    file = tmp_path / "talks_train_x.txt"
    file.write_text(GOOD, encoding="utf-8")
    assert flow.read_flows([file])[0].asked[0][0].value == "the 19th" and GOOD.replace(*change) != GOOD
    file.write_text(GOOD.replace(*change), encoding="utf-8")
    with pytest.raises(CorpusError, match=re.escape(message)) as refused:
        flow.read_flows([file])
    assert "\n" not in str(refused.value)


def test_training_draws_them_and_nothing_held_out_does():
    tellings, rng = Tellings(Varied([], [])), random.Random(0)
    drawn = [tellings.draw(rng) for _ in range(300)]
    flowing = [t for t in drawn if t.others]
    assert 0.3 < len(flowing) / len(drawn) < 0.6
    for t in flowing:
        assert t.said not in t.others
        assert all(mentions(t.texts[-1], a.value) and not any(mentions(o.text, a.value) for o in t.others) for a in t.asked)
    held = Tellings(Varied([], []), split="heldout")
    assert not any(held.draw(rng).others for _ in range(100))
