"""What bAbI's stories say is true: reads their sentences one by one and answers the questions of tasks 1, 2, 3 and 5 at any point.

Knows bAbI's wording (moves, taking, leaving, giving), not its files. Used to ask more questions about a story than its file does.
"""

import random
import re
from typing import NamedTuple

PEOPLE = ("Mary", "John", "Daniel", "Sandra", "Fred", "Bill", "Jeff", "Julie")
ROOMS = ("bathroom", "hallway", "garden", "office", "bedroom", "kitchen")
OBJECTS = ("football", "milk", "apple")
MOVES = ("moved to", "went to", "journeyed to", "travelled to", "went back to")
TAKES = ("took", "got", "grabbed", "picked up")
DROPS = ("left", "dropped", "discarded", "put down")
GIVES = ("gave", "passed", "handed")
WAYS = ("move", "take", "drop", "give")

_MOVE = re.compile(rf"(\w+) (?:{'|'.join(MOVES)}) the (\w+)\.")
_TAKE = re.compile(rf"(\w+) (?:{'|'.join(TAKES)}) the (\w+)(?: there)?\.")
_DROP = re.compile(rf"(\w+) (?:{'|'.join(DROPS)}) the (\w+)(?: there)?\.")
_GIVE = re.compile(rf"(\w+) (?:{'|'.join(GIVES)}) the (\w+) to (\w+)\.")


def parts(sentence: str) -> tuple[str, str, str]:
    """One of WAYS, the object and who it was given to ("" where there is none). Raises ValueError for a sentence that is none of bAbI's."""
    if _MOVE.fullmatch(sentence):
        return "move", "", ""
    if m := _GIVE.fullmatch(sentence):
        return "give", m.group(2), m.group(3)
    if m := _TAKE.fullmatch(sentence):
        return "take", m.group(2), ""
    if m := _DROP.fullmatch(sentence):
        return "drop", m.group(2), ""
    raise ValueError(f"{sentence!r} is none of bAbI's sentences")


class Question(NamedTuple):
    """A question, its one-word answer, and the bAbI task it belongs to."""

    text: str
    answer: str
    task: str


class World:
    """The state after the sentences told so far."""

    def __init__(self) -> None:
        self.place: dict[str, str] = {}
        self.holder: dict[str, str] = {}
        self.trail: dict[str, list[str]] = {}
        self.gifts: list[tuple[str, str, str]] = []

    def tell(self, sentence: str) -> bool:
        """Take in one sentence. False if it is none of bAbI's: it changes nothing."""
        if m := _MOVE.fullmatch(sentence):
            who, where = m.groups()
            self.place.pop(who, None)  # the order is that of the last moves
            self.place[who] = where
            for thing, holder in self.holder.items():
                if holder == who:
                    self._walk(thing, where)
        elif m := _GIVE.fullmatch(sentence):
            giver, thing, taker = m.groups()
            self.gifts.append((giver, thing, taker))
            self.holder[thing] = taker
            if taker in self.place:
                self._walk(thing, self.place[taker])
        elif m := _TAKE.fullmatch(sentence):
            who, thing = m.groups()
            self.holder[thing] = who
            if who in self.place:
                self._walk(thing, self.place[who])
        elif m := _DROP.fullmatch(sentence):
            self.holder.pop(m.group(2), None)
        else:
            return False
        return True

    def _walk(self, thing: str, where: str) -> None:
        trail = self.trail.setdefault(thing, [])
        if not trail or trail[-1] != where:
            trail.append(where)

    def questions(self, rng: random.Random, task: str, oldest: bool = False) -> Question | None:
        """A question of one task (`qa1`, `qa2`, `qa3`, `qa5`) that has an answer now, or None. oldest: for qa1, of who moved least recently."""
        if task == "qa1":
            if not self.place:
                return None
            who = next(iter(self.place)) if oldest else rng.choice(sorted(self.place))
            return Question(f"Where is {who}?", self.place[who], task)
        if task == "qa2":
            things = sorted(self.trail)
            if not things:
                return None
            thing = rng.choice(things)
            return Question(f"Where is the {thing}?", self.trail[thing][-1], task)
        if task == "qa3":
            pairs = sorted({(t, trail[i]) for t, trail in self.trail.items() for i in range(1, len(trail))})
            if not pairs:
                return None
            thing, room = rng.choice(pairs)
            trail = self.trail[thing]
            last = max(i for i in range(1, len(trail)) if trail[i] == room)
            return Question(f"Where was the {thing} before the {room}?", trail[last - 1], task)
        if not self.gifts:
            return None
        giver, thing, taker = rng.choice(self.gifts)
        form = rng.randrange(5)
        if form == 0:
            answer = next(t for g, t, k in reversed(self.gifts) if (g, k) == (giver, taker))
            return Question(f"What did {giver} give to {taker}?", answer, task)
        if form == 1:
            answer = next(g for g, t, k in reversed(self.gifts) if t == thing)
            return Question(f"Who gave the {thing}?", answer, task)
        if form == 2:
            answer = next(g for g, t, k in reversed(self.gifts) if (t, k) == (thing, taker))
            return Question(f"Who gave the {thing} to {taker}?", answer, task)
        if form == 3:
            answer = next(k for g, t, k in reversed(self.gifts) if t == thing)
            return Question(f"Who received the {thing}?", answer, task)
        answer = next(k for g, t, k in reversed(self.gifts) if (g, t) == (giver, thing))
        return Question(f"Who did {giver} give the {thing} to?", answer, task)


def story(rng: random.Random, task: str, length: int) -> list[str]:
    """`length` sentences of an invented story in which people move (qa1), carry things (qa2, qa3) or give them away (qa5)."""
    people = rng.sample(PEOPLE, 4)
    world = World()
    lines: list[str] = []
    while len(lines) < length:
        who = rng.choice(people)
        held = [t for t, h in world.holder.items() if h == who]
        free = [t for t in OBJECTS if t not in world.holder and (not world.trail.get(t) or world.trail[t][-1] == world.place.get(who))]
        roll = rng.random()
        move = 1.0 if task == "qa1" else 0.5 if task == "qa5" else 0.6
        if roll < move or who not in world.place or not (held or free):
            line = f"{who} {rng.choice(MOVES)} the {rng.choice([r for r in ROOMS if r != world.place.get(who)])}."
        elif held and task == "qa5" and rng.random() < 0.75:
            line = f"{who} {rng.choice(GIVES)} the {rng.choice(held)} to {rng.choice([p for p in people if p != who])}."
        elif held and (not free or rng.random() < 0.4):
            line = f"{who} {rng.choice(DROPS)} the {rng.choice(held)}{rng.choice(('', ' there'))}."
        else:
            if not free:
                continue
            line = f"{who} {rng.choice(TAKES)} the {rng.choice(free)}{rng.choice(('', ' there'))}."
        world.tell(line)
        lines.append(line)
    return lines
