"""What a reader of bAbI's stories has to keep of each sentence, who did what and where that leaves the one who did it, and of each question.

Knows bAbI's wording through world.py (tasks 1, 2, 3, 5) and task 4's relations; no tokens, no model. Used to ask a memory's rows what they hold
while it is trained (models/training/fact_task.py).
"""

import re
from typing import NamedTuple

from . import world
from .world import OBJECTS, PEOPLE, ROOMS

UNKNOWN = -100  # nothing to be known: cross-entropy leaves it out
RELATIONS = ("north", "south", "east", "west")
VERBS = (*world.WAYS, *RELATIONS)
NOWHERE = len(ROOMS)

_RELATION = re.compile(rf"The (\w+) is ({'|'.join(RELATIONS)}) of the (\w+)\.")


class Known(NamedTuple):
    """One fact as numbers: indices into PEOPLE + ROOMS (subject), VERBS, OBJECTS, ROOMS and NOWHERE (place, before), PEOPLE (taker); 0 or 1 for
    whether the subject now holds each of OBJECTS. UNKNOWN where the sentence has no such part."""

    subject: int
    verb: int
    thing: int
    place: int
    before: int
    taker: int
    holds_football: int
    holds_milk: int
    holds_apple: int


CHOICES = Known(len(PEOPLE) + len(ROOMS), len(VERBS), len(OBJECTS), NOWHERE + 1, NOWHERE + 1, len(PEOPLE), 2, 2, 2)
LOCAL = ("subject", "verb", "thing", "taker")  # what the sentence alone says


class Wanted(NamedTuple):
    """A question as numbers: which of FORMS it has, and the index of the person or room (as subject), object, room and taker it names, or UNKNOWN."""

    form: int
    subject: int
    thing: int
    room: int
    taker: int


_NORTH = re.compile(rf"What is ({'|'.join(RELATIONS)}) of the (\w+)\?")
_OF = re.compile(rf"What is the (\w+) ({'|'.join(RELATIONS)}) of\?")
FORMS = ("where is who", "where is what", "before", *(f"{r} of it" for r in RELATIONS), *(f"it is {r} of" for r in RELATIONS),
         "what to whom", "who gave", "who gave to", "who received", "to whom")  # fmt: skip
ASKED = Wanted(len(FORMS), len(PEOPLE) + len(ROOMS), len(OBJECTS), len(ROOMS), len(PEOPLE))


def wanted(question: str) -> Wanted:
    """What a question of tasks 1 to 5 names. Raises ValueError for any other."""
    for pattern, form, room in ((_NORTH, "{} of it", 2), (_OF, "it is {} of", 1)):
        if m := pattern.fullmatch(question):
            return Wanted(FORMS.index(form.format(m[3 - room])), len(PEOPLE) + ROOMS.index(m[room]), UNKNOWN, UNKNOWN, UNKNOWN)
    words = question.removesuffix("?").split()
    taker: list[str]
    names, things, rooms = ([w for w in words if w in known] for known in (PEOPLE, OBJECTS, ROOMS))
    begin = " ".join(words[:2])
    if begin == "Where is":
        form, subject, taker = ("where is who", names[:1], []) if names else ("where is what", [], [])
    elif begin == "Where was":
        form, subject, taker = "before", [], []
    elif words[0] == "What" and len(names) == 2:
        form, subject, taker = "what to whom", names[:1], names[1:]
    elif begin == "Who gave":
        form, subject, taker = ("who gave to" if names else "who gave"), [], names
    elif begin == "Who received":
        form, subject, taker = "who received", [], []
    elif begin == "Who did" and names:
        form, subject, taker = "to whom", names, []
    else:
        raise ValueError(f"{question!r} is no question of bAbI's tasks 1 to 5")

    def number(found: list[str], known: tuple[str, ...]) -> int:
        return known.index(found[0]) if found else UNKNOWN

    return Wanted(FORMS.index(form), number(subject, PEOPLE), number(things, OBJECTS), number(rooms, ROOMS), number(taker, PEOPLE))


class _Followed(world.World):
    """A world that also keeps the numbers of the facts that made it so: arrivals beside each thing's trail, and where a thing was last heard of."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.arrivals: dict[str, list[int]] = {}
        self.heard: dict[str, int] = {}

    def _walk(self, thing: str, where: str) -> None:
        known = len(self.trail.get(thing, ()))
        super()._walk(thing, where)
        if len(self.trail[thing]) > known:
            self.arrivals.setdefault(thing, []).append(self.now)
        self.heard[thing] = self.now


class Reader:
    """Follows a story. facts: how many were told so far; they are numbered from 0. history: per person those with this subject, per thing those
    that take it, leave it, give it away or carry it elsewhere."""

    def __init__(self) -> None:
        self.world = _Followed()
        self.facts = 0
        self.history: dict[str, list[int]] = {}
        self._left: dict[str, str] = {}
        self._moved: dict[str, int] = {}
        self._given: list[int] = []
        self._related: dict[frozenset[str], int] = {}

    def tell(self, sentence: str) -> Known:
        """Take in one fact. Raises ValueError for a sentence that is none of bAbI's."""
        number = self.world.now = self.facts
        if m := _RELATION.fullmatch(sentence):
            one, relation, other = m.groups()
            self._related[frozenset((one, other))] = number
            self.facts += 1
            nothing = (UNKNOWN,) * 5
            return Known(len(PEOPLE) + ROOMS.index(one), VERBS.index(relation), UNKNOWN, ROOMS.index(other), *nothing)
        who = sentence.split(" ", 1)[0]
        was = self.world.place.get(who)
        if not self.world.tell(sentence):
            raise ValueError(f"{sentence!r} is no fact of bAbI's tasks 1 to 5")
        self.facts += 1
        way, thing, taker = world.parts(sentence)
        moved = [held for held in OBJECTS if way == "move" and self.world.holder.get(held) == who]
        for name in (who, *moved, *([thing] if thing else [])):
            self.history.setdefault(name, []).append(number)
        here = self.world.place.get(who)
        if way == "move":
            self._moved[who] = number
            if was is not None and was != here:
                self._left[who] = was
        elif way == "give":
            self._given.append(number)
        elif way == "drop" and thing in self.world.heard:
            self.world.heard[thing] = number
        left = self._left.get(who)
        return Known(
            PEOPLE.index(who),
            VERBS.index(way),
            OBJECTS.index(thing) if thing else UNKNOWN,
            ROOMS.index(here) if here else NOWHERE,
            ROOMS.index(left) if left else NOWHERE,
            PEOPLE.index(taker) if taker else UNKNOWN,
            *(int(self.world.holder.get(held) == who) for held in OBJECTS),
        )

    def source(self, question: world.Question) -> int:
        """The number of the fact whose row answers the question, if rows hold what `Known` says. Raises ValueError for one without an answer."""
        named = wanted(question.text)
        form = FORMS[named.form]
        subject, taker = (PEOPLE[i] if 0 <= i < len(PEOPLE) else "" for i in (named.subject, named.taker))
        thing = OBJECTS[named.thing] if named.thing >= 0 else ""
        try:
            if form == "where is who":
                return self._moved[subject]
            if form == "where is what":
                return self.world.heard[thing]
            if form == "before":
                trail = self.world.trail[thing]
                return self.world.arrivals[thing][max(i for i in range(1, len(trail)) if trail[i] == ROOMS[named.room])]
            if question.task == "qa4":
                return self._related[frozenset((ROOMS[named.subject - len(PEOPLE)], question.answer))]
            gifts = zip(self._given, self.world.gifts, strict=True)
            return max(n for n, gift in gifts if all(part in ("", told) for part, told in zip((subject, thing, taker), gift, strict=True)))
        except (KeyError, ValueError):
            raise ValueError(f"{question.text!r} has no answer in this story") from None
