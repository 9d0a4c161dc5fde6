"""Conversations with facts, other talk and a question asked a stated number of chunks later. Needs no data: everything is drawn from a seed.

Knows texts and how many tokens they may have; templates, models and scoring are others' business. Two kinds: `story` speaks bAbI's
language (people move between places, and only the last move counts), `chat` is a user who tells an assistant things.
"""

import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

from .fillers import exchanges, sentences
from .words import FACTS, Fact, parts, phrasings

KINDS = ("story", "chat")
SPLITS = ("train", "validation")
PEOPLE = ("Mary", "John", "Daniel", "Sandra", "Fred", "Bill", "Jeff", "Julie")
ROOMS = ("bathroom", "hallway", "garden", "office", "bedroom", "kitchen")
MOVES = ("moved to", "went to", "journeyed to", "travelled to", "went back to")
OK = "Ok."
THANKS = ("Thank you for telling me.", "Thanks, I will keep that in mind.", "Good to know.", "I see.", "Noted.")
ROOM_FOR_TEMPLATE = 16  # tokens a chat template puts around one exchange, at most


class Turn(NamedTuple):
    """One message. role: `user` or `assistant`."""

    role: str
    content: str


class Conversation(NamedTuple):
    """A sample. chunks: what is said in each chunk, in order, every chunk to be committed; question: the user's last message, in a fresh chunk.

    answer: the words that must be in the reply. labels: all answers of this kind. distance: chunks from the one with the asked fact to
    the question (1: told in the chunk before). reply: a whole answer, for training.
    """

    chunks: tuple[tuple[Turn, ...], ...]
    question: str
    answer: str
    labels: tuple[str, ...]
    kind: str
    distance: int
    reply: str


def conversations(
    kind: str, seed: int, split: str, distance: int, count_tokens: Callable[[str], int], chunk: int, before: int = 1
) -> Iterator[Conversation]:
    """Endless samples of one kind at one distance, each a function of (kind, seed, split, distance, its number) alone.

    count_tokens: tokens of a text without template; chunk: tokens a chunk may have, template included. before: up to so many chunks of
    other talk and other facts come first. Raises ValueError for a kind, split or distance there is not.
    """
    if kind not in KINDS or split not in SPLITS or distance < 1:
        raise ValueError(f"kind {kind!r}, split {split!r}, distance {distance} must be one of {KINDS}, one of {SPLITS} and at least 1")
    number = 0
    while True:
        rng = random.Random(f"{kind} {seed} {split} {distance} {number}")
        earlier = rng.randint(0, before)
        make = _story if kind == "story" else _chat
        yield make(rng, split, earlier, distance, count_tokens, chunk)
        number += 1


def _story(rng: random.Random, split: str, earlier: int, distance: int, count: Callable[[str], int], chunk: int) -> Conversation:
    people = rng.sample(PEOPLE, 4)
    asked = people[0]
    plain = sentences(rng, split)
    room = ""
    chunks = []
    for c in range(earlier + distance):
        movers = people if c <= earlier else people[1:]
        told = []
        for _ in range(rng.randint(1, 4)):
            told.append((rng.choice(movers), rng.choice(ROOMS)))
        at = 0
        if c == earlier:
            at = rng.randint(0, len(told))
            told.insert(at, (asked, rng.choice(ROOMS)))
        lines = [f"{who} {rng.choice(MOVES)} the {where}." for who, where in told]
        while len(lines) > 1 and sum(count(" " + line) for line in lines) > chunk - ROOM_FOR_TEMPLATE:
            last = len(lines) - 1 if at < len(lines) - 1 else len(lines) - 2  # the asked fact stays
            del told[last], lines[last]
            at -= last < at
        room = next((where for who, where in reversed(told) if who == asked), room)
        chunks.append((Turn("user", _filled(rng, lines, plain, count, chunk - ROOM_FOR_TEMPLATE)), Turn("assistant", OK)))
    return Conversation(tuple(chunks), f"Where is {asked}?", room, ROOMS, "qa1", distance, f"{room}.")


def _filled(rng: random.Random, lines: list[str], plain: Iterator[str], count: Callable[[str], int], room: int) -> str:
    """The lines in their order with plain sentences put between them until `room` tokens are taken."""
    taken = sum(count(" " + line) for line in lines)
    gaps: list[list[str]] = [[] for _ in range(len(lines) + 1)]
    for sentence in plain:
        taken += count(" " + sentence)
        if taken > room:
            break
        rng.choice(gaps).append(sentence)
    text = list(gaps[0])
    for line, gap in zip(lines, gaps[1:], strict=True):
        text += [line, *gap]
    return " ".join(text)


class Told(NamedTuple):
    """A fact with its values filled in."""

    kind: str
    fact: Fact
    value: str
    other: str


def draw_fact(rng: random.Random, split: str, kind: str | None = None) -> Told:
    """A fact of the split: validation has values of its own (where there are at least 20 of them) and phrasings of its own."""
    kind = kind or rng.choice(list(FACTS))
    fact = FACTS[kind]
    values = parts(fact.values, split) if len(fact.values) >= 20 else fact.values
    return Told(kind, fact, rng.choice(values), rng.choice(fact.others) if fact.others else "")


def say(rng: random.Random, told: Told, split: str) -> str:
    """A statement of the fact, in a phrasing of the split."""
    return rng.choice(phrasings(told.fact.told, split)).format(v=told.value, w=told.other)


def ask(rng: random.Random, told: Told, split: str) -> str:
    """A question for the fact, in a phrasing of the split."""
    return rng.choice(phrasings(told.fact.asked, split)).format(w=told.other)


def reply(told: Told) -> str:
    """The answer as a sentence."""
    text = told.fact.reply.format(v=told.value, w=told.other)
    return text[0].upper() + text[1:]


def _chat(rng: random.Random, split: str, earlier: int, distance: int, count: Callable[[str], int], chunk: int) -> Conversation:
    asked = draw_fact(rng, split)
    talk = exchanges(rng, split)
    chunks = []
    for c in range(earlier + distance):
        told = [t for t in (draw_fact(rng, split) for _ in range(rng.randint(0, 2))) if t.kind != asked.kind]
        if c == earlier:
            told.insert(rng.randint(0, len(told)), asked)
        turns: list[Turn] = []
        taken = 0
        pending = list(told)
        while True:
            share = pending and (rng.random() < 0.5 or taken > chunk // 2)
            if share:
                pair = (say(rng, pending.pop(0), split), rng.choice(THANKS))
            else:
                pair = next(talk)
            cost = sum(count(text) for text in pair) + ROOM_FOR_TEMPLATE
            if taken + cost > chunk - ROOM_FOR_TEMPLATE * 2 and not share:
                if not pending:
                    break
                continue
            taken += cost
            turns += [Turn("user", pair[0]), Turn("assistant", pair[1])]
        chunks.append(tuple(turns))
    return Conversation(tuple(chunks), ask(rng, asked, split), asked.value, asked.fact.values, asked.kind, distance, reply(asked))
