"""Messages that tell something, questions for it, and ordinary messages, all as texts: what a recall is trained on. Knows texts, no tokens.

From the corpus of told facts and conversations (models/tasks/natural), from templates (models/tasks/varied) and from dialogues in which values stand marked;
the same held-out parts as everywhere are never drawn for training.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

from ..tasks.natural import flow, kinds, talk
from ..tasks.natural.answers import mentions
from ..tasks.natural.dialogues import Dialogue, Value
from ..tasks.natural.kinds import Told as Fact
from ..tasks.ordinary import question
from ..tasks.recall import reply
from ..tasks.varied import Varied
from ..text.sentences import question_at_end

MARKED, TEMPLATES, FLOWING = 0.2, 0.06, 0.44  # shares of dialogues, of templates and of conversations
REPLIED = 256  # characters of a question that a message replies to
SHORT, AFTER = 14, 0.5  # words of a message that may be understood from the one before it; how often it goes with that
SAID = ("You said {}.", "It was {}.", "It's {}.")  # none begins with it: a word after a blank has tokens that it has not where a text begins


class Said(NamedTuple):
    """A message. before: what the assistant had asked, to which it replies, or the message that was said before it, or nothing."""

    text: str
    before: str = ""

    @property
    def whole(self) -> str:
        """What it says, with what it was said to (runtime/session/recalling.py)."""
        return f"{self.before} {self.text}" if self.before else self.text


class Asked(NamedTuple):
    """A question for something told. answer: a sentence; value: what it has to say; again: the question in other words, where there are any."""

    question: str
    answer: str
    value: str
    again: str


class Telling(NamedTuple):
    """texts: messages in their order, the last of which counts; asked: what may be asked for, nothing of an ordinary message; kinds: of fact, all that
    the texts tell: another telling with one of them may answer the same questions. others: messages of the same conversation that do not answer. before:
    what the last text replies to, or was said after, or nothing."""

    texts: tuple[str, ...]
    asked: tuple[Asked, ...] = ()
    kinds: frozenset[str] = frozenset()
    others: tuple[Said, ...] = ()
    before: str = ""

    @property
    def said(self) -> Said:
        """The last text, with what it replies to."""
        return Said(self.texts[-1], self.before)


class Tellings:
    """Draws from a split. marked: dialogues with values, of which those of the split are used."""

    def __init__(self, varied: Varied, marked: Sequence[Dialogue] = (), split: str = "train"):
        self.varied, self.split = varied, split
        self.ordinary = talk.ordinary(split)
        self.flowing = [(f, i) for f in flow.flows() for i, asked in enumerate(f.asked) if asked] if split == "train" else []
        self.asking = [q for q in dict.fromkeys(q for f, _ in self.flowing for q in f.before) if q]  # what an assistant asks
        self.marked = [d for d in marked if d.split == split and any(v.questions for v in d.values)]
        # What users of dialogues say beside that: "No, thank you", or questions for what they never told.
        self.turns = list(dict.fromkeys(text for d in marked if d.split == split for n, (role, text) in enumerate(d.turns) if role == "user" and all(v.turn != n for v in d.values)))

    def draw(self, rng: random.Random) -> Telling:
        """Something told."""
        roll = rng.random()
        if roll < MARKED and self.marked:
            return self._marked(rng, rng.choice(self.marked))
        if self.split == "train" and roll < MARKED + TEMPLATES:
            told = self.varied.draw(rng)
            return Telling((self.varied.say(rng, told),), (Asked(self.varied.ask(rng, told), reply(told), told.value, self.varied.ask(rng, told)),), frozenset({told.kind}))
        if self.flowing and roll < MARKED + TEMPLATES + FLOWING:
            return self._flowing(rng, *rng.choice(self.flowing))
        facts = kinds.draw_all(rng, self.split)
        first = facts[0]
        if first.earlier:
            return Telling((first.earlier, first.text), self._asked(rng, facts), _kinds(facts), before=_after(rng, first.earlier, first.text))
        if len(facts) == 1 and (roll := rng.random()) < 0.5:
            if roll < 0.35:
                return Telling((kinds.chatty(rng, first, self.split).text,), self._asked(rng, facts), _kinds(facts))
            other = kinds.draw(rng, self.split)
            if not other.earlier and other.key[:2] != first.key[:2]:
                both = (first, other)
                return Telling((kinds.together(rng, both),), self._asked(rng, both), _kinds(both))
        return Telling((first.text,), self._asked(rng, facts), _kinds(facts))

    def message(self, rng: random.Random, ordinary: float = 0.3) -> Telling:
        """One message: an ordinary one in a share of `ordinary`, else one that tells something."""
        if rng.random() < ordinary:
            return Telling((rng.choice(self.ordinary),))
        told = self.draw(rng)
        return told._replace(texts=told.texts[-1:])

    def idle(self, rng: random.Random, unknown: float = 0.1) -> str:
        """A message that asks for nothing told. unknown: share of those that ask for what might have been told and was not."""
        roll = rng.random()
        if roll < unknown:
            return rng.choice(talk.unknown())
        roll = (roll - unknown) / (1 - unknown)
        if roll < 0.55:
            return self.plain(rng)
        if roll < 0.72:
            return question(rng)
        return rng.choice(self.turns) if self.turns and rng.random() < 0.5 else self.draw(rng).texts[-1]

    def plain(self, rng: random.Random) -> str:
        """An ordinary message: nothing told, nothing told asked for."""
        return rng.choice(self.ordinary if rng.random() < 0.5 else talk.idle())

    @staticmethod
    def _marked(rng: random.Random, dialogue: Dialogue) -> Telling:
        value = rng.choice([v for v in dialogue.values if v.questions])
        same: list[Value] = [v for v in dialogue.values if v.slot == value.slot]
        texts = tuple(dict.fromkeys(dialogue.turns[v.turn][1] for v in same))
        last = same[-1]
        there = frozenset(v.slot for v in dialogue.values if dialogue.turns[v.turn][1] in texts)
        asked = Asked(rng.choice(value.questions), rng.choice(SAID).format(last.text), last.text, rng.choice(value.questions))
        others = tuple(_said(dialogue, n) for n, (role, text) in enumerate(dialogue.turns) if role == "user" and text not in texts and not mentions(text, last.text))
        return Telling(texts, (asked,), there, others, _said(dialogue, last.turn).before)

    def _flowing(self, rng: random.Random, talked: flow.Flow, place: int) -> Telling:
        asked = tuple(Asked(self._put(rng, rng.choice(a.questions)), a.reply, a.value, self._put(rng, rng.choice(a.questions))) for a in talked.asked[place])
        lines = zip(talked.messages, talked.before, ("", *talked.messages), strict=False)
        said = [Said(text, before or _after(rng, earlier, text)) for text, before, earlier in lines]
        others = tuple(s for i, s in enumerate(said) if i != place and not any(mentions(s.text, a.value) for a in talked.asked[place]))
        return Telling((talked.messages[place],), asked, frozenset({f"{talked.title} {place}"}), others, said[place].before)

    def _asked(self, rng: random.Random, facts: Sequence[Fact]) -> tuple[Asked, ...]:
        return tuple(Asked(self._question(rng, fact), fact.reply, fact.value, self._question(rng, fact)) for fact in facts)

    def _question(self, rng: random.Random, fact: Fact) -> str:
        if self.split != "train":
            return kinds.ask(rng, fact)
        return self._put(rng, rng.choice(fact.questions))

    @staticmethod
    def _put(rng: random.Random, question: str) -> str:
        """A question as people put it: now and then with something before or after it."""
        roll = rng.random()
        if roll < 0.15:
            return rng.choice(kinds.ASK_LEADS) + question
        if roll < 0.25:
            return question + ("" if question[-1] in "?.!" else "?") + rng.choice(kinds.ASK_TAILS)
        return question


def _said(dialogue: Dialogue, turn: int) -> Said:
    """A user's turn, with the question that the turn before ends with."""
    before = dialogue.turns[turn - 1] if turn else ("", "")
    return Said(dialogue.turns[turn][1], question_at_end(before[1], REPLIED) if before[0] == "assistant" else "")


def _after(rng: random.Random, earlier: str, text: str) -> str:
    """The message before a short one, now and then."""
    return earlier if len(text.split()) <= SHORT and rng.random() < AFTER else ""


def _kinds(facts: Sequence[Fact]) -> frozenset[str]:
    return frozenset(fact.kind for fact in facts)
