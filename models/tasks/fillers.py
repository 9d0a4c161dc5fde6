"""Sentences and small talk that say nothing anybody asks about later. Knows no facts and no chunks."""

import random
from collections.abc import Iterator

from .words import parts


def _list(text: str) -> tuple[str, ...]:
    """Words, or where there is a semicolon what stands between semicolons."""
    return tuple(text.split(";" if ";" in text else None))


_SUBJECTS = _list(
    "wind river old clock moon road lantern train market forest bridge candle harbor fire snow clouds path bell tower mill storm rain window "
    "sea valley ship lighthouse fog meadow fence church wagon"
)
_QUALITIES = _list(
    "cold quiet grey distant narrow heavy bright slow empty gentle dark long strange warm pale dusty broken silent soft deep"
)
_VERBS = _list(
    "rose above;shone over;stood behind;vanished beyond;passed;turned towards;waited near;trembled beside;lay across;drifted past;"
    "could be seen from;had once belonged to;was no longer part of;reached as far as"
)
_ENDS = _list(
    "the hills;the village;the old wall;the water;the roofs;the fields;the last houses;the shore;the trees;the town;the horizon;the square;"
    "the ruins;the dunes;the mountains"
)

_TALK = (
    ("Tell me something about {x}.", "People have thought about {x} for a very long time, and there is always more to learn."),
    ("What do you think of {x}?", "I think {x} can be quite interesting, depending on the point of view."),
    ("Is {x} difficult to understand?", "It takes some patience, but with good examples {x} becomes clear."),
    ("Can you give me a tip about {x}?", "Start small, take your time, and ask questions when something about {x} is unclear."),
    ("I have been reading about {x} lately.", "That sounds like a good way to spend an evening."),
    ("Why do people care about {x}?", "Because {x} touches many parts of everyday life."),
    ("How would you explain {x} to a child?", "I would use simple words and a story, and let the child ask about {x}."),
    ("It has been a long week.", "I hope you find some time to rest."),
    ("The weather is strange today.", "It changes quickly at this time of the year."),
    ("Thank you for your help.", "You are welcome. Is there anything else?"),
    ("Let us talk about {x} for a while.", "Gladly. What would you like to know about {x}?"),
    ("I do not know much about {x}.", "Nobody starts as an expert. A short introduction to {x} is a good first step."),
    ("Some say that {x} is overrated.", "Opinions differ, and it helps to look at the reasons behind them."),
    ("Do you have a fun fact about {x}?", "There are many stories about {x}, and some of them are even true."),
    ("Could we change the subject to {x}?", "Of course. There is a lot to say about {x}."),
)  # fmt: skip
_TOPICS = _list(
    "history;astronomy;the weather;cooking;old maps;volcanoes;poetry;the ocean;architecture;insects;physics;trains in general;opera;economics;"
    "gardens;medicine;philosophy;rivers;mountains;sleep;computers;sports;museums;geology;bridges;bees;folk tales;deserts;the theater;"
    "statistics;forests;satellites;glaciers;typography;chemistry;public libraries;cheese making;electric cars;democracy;the moon"
)


def sentences(rng: random.Random, split: str) -> Iterator[str]:
    """Endless plain sentences. `train` and `validation` share no subject and no ending."""
    subjects, ends = parts(_SUBJECTS, split), parts(_ENDS, split)
    while True:
        yield f"The {rng.choice(_QUALITIES)} {rng.choice(subjects)} {rng.choice(_VERBS)} {rng.choice(ends)}."


def exchanges(rng: random.Random, split: str) -> Iterator[tuple[str, str]]:
    """Endless pairs of a user's message and an answer. `train` and `validation` share no topic and no phrasing."""
    talk, topics = parts(_TALK, split), parts(_TOPICS, split)
    while True:
        said, answered = rng.choice(talk)
        x = rng.choice(topics)
        yield said.format(x=x), answered.format(x=x)
