"""Facts as people tell them, drawn from a seed: what is said, what may be asked later, and where the value stands. Knows no tokens and no chunks.

Several hundred kinds are for training (data/train_*.txt); kinds of other domains, with values of their own, are held out (data/heldout_*.txt).
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from . import values
from .answers import mentions
from .errors import CorpusError
from .files import FOLDER
from .reader import Kind, read, slots_of
from .talk import ordinary

LOOSE = 0.2  # of messages that are typed without capitals at the start or a stop at the end
TRIES = 200
_MARK = re.compile(r"\{(?:([aA]) )?([A-Za-z]+)\}")
_AN = re.compile(r"(?:[aeio]|un(?!i)|ug|um|up|us(?!e|u)|hour|honest|heir|8|11\b|18\b)", re.IGNORECASE)
_NOT_AN = re.compile(r"(?:eu|one\b|once)", re.IGNORECASE)


@dataclass(frozen=True)
class Told:
    """A fact that was told. text: the message; value: what is asked for, text[begin:end] but for a capital; span: (begin, end).

    questions: in different words; reply: an answer as a sentence. key: kind, asked slot and what the questions name: of two facts with the same
    key the later counts. earlier: a message said before with another value that this one corrects, or None.
    """

    kind: str
    text: str
    value: str
    span: tuple[int, int]
    questions: tuple[str, ...]
    reply: str
    key: tuple[str, ...]
    earlier: str | None = None


@cache
def kinds(split: str) -> dict[str, Kind]:
    """The kinds of `train` or `heldout`. Raises CorpusError for another split, and for files that break their form."""
    if split not in values.SPLITS:
        raise CorpusError(f"split {split!r} must be one of {values.SPLITS}")
    return read(sorted(set(FOLDER.glob(f"{split}_*.txt")) - {FOLDER / "heldout_talks.txt"}))


def draw(rng: random.Random, split: str, kind: str | None = None, loose: bool = True) -> Told:
    """One fact of a split, of a drawn kind if none is named. loose: sometimes typed carelessly. Raises CorpusError for a kind there is not."""
    return rng.choice(draw_all(rng, split, kind, loose))


def draw_all(rng: random.Random, split: str, kind: str | None = None, loose: bool = True) -> tuple[Told, ...]:
    """All facts of one message: one, or as many as the statement tells."""
    known = kinds(split)
    if kind is not None and kind not in known:
        raise CorpusError(f"there is no kind {kind!r} in {split}")
    chosen = known[kind] if kind is not None else rng.choice(list(known.values()))
    for _ in range(TRIES):
        said = rng.choice(chosen.statements)
        filled = fill_slots(rng, chosen, split)
        if chosen.corrections and rng.random() < 1 / (1 + len(chosen.statements)):
            told: tuple[Told, ...] = (corrected(rng, chosen, filled),)
        else:
            told = tell(rng, chosen, said, filled, loose)
        if all(not mentions(question, t.value) for t in told for question in t.questions):
            return told
    raise CorpusError(f"kind {chosen.name!r}: its questions keep naming the value: use other types of values")


def fill_slots(rng: random.Random, kind: Kind, split: str) -> dict[str, str]:
    """A value for every slot and `old`, none inside another. Raises CorpusError where a type has too few."""
    for _ in range(TRIES):
        filled = {slot: _value(rng, of, split) for slot, of in kind.slots.items()}
        filled["old"] = _value(rng, kind.slots["x"], split)
        if not any(mentions(a, b) for i, a in enumerate(filled.values()) for j, b in enumerate(filled.values()) if i != j):
            return filled
    raise CorpusError(f"kind {kind.name!r}: its slots have too few different values")


def _value(rng: random.Random, of: str | tuple[str, ...], split: str) -> str:
    return values.draw(of, rng, split) if isinstance(of, str) else rng.choice(of)


def tell(rng: random.Random, kind: Kind, said: str, filled: dict[str, str], loose: bool = False) -> tuple[Told, ...]:
    """The facts of one statement with its slots filled in."""
    text, spans = rendered(said, filled)
    if loose and rng.random() < LOOSE:
        text = _careless(text, spans)
    return tuple(_told(kind, slot, text, spans[slot], filled) for slot in kind.asked if slot in spans)


def corrected(rng: random.Random, kind: Kind, filled: dict[str, str]) -> Told:
    """A fact told with `old`'s value and then corrected. The kind must have corrections."""
    plain = [s for s in kind.statements if "x" in slots_of(s) and "old" not in slots_of(s)]
    before, _ = rendered(rng.choice(plain), {**filled, "x": filled["old"]})
    text, spans = rendered(rng.choice(kind.corrections), filled)
    return _told(kind, "x", text, spans["x"], filled, before)


def _told(kind: Kind, slot: str, text: str, span: tuple[int, int], filled: dict[str, str], earlier: str | None = None) -> Told:
    questions = tuple(rendered(q, filled)[0] for q in kind.questions[slot])
    reply = rendered(kind.replies[slot], filled)[0]
    key = (kind.name, slot, *(filled[name].lower() for name in sorted(kind.keys[slot])))
    return Told(kind.name, text, filled[slot], span, questions, reply[0].upper() + reply[1:], key, earlier)


def rendered(template: str, filled: dict[str, str]) -> tuple[str, dict[str, tuple[int, int]]]:
    """A template with its slots filled in, and where each slot's value stands."""
    parts: list[str] = []
    spans: dict[str, tuple[int, int]] = {}
    at = length = 0
    for mark in _MARK.finditer(template):
        article, name = mark[1], mark[2]
        value = filled[name.lower()]
        if name[0].isupper():
            value = value[0].upper() + value[1:]
        before = template[at : mark.start()] + (f"{article}{'n' if _takes_an(value) else ''} " if article else "")
        parts += [before, value]
        spans[name.lower()] = (length + len(before), length + len(before) + len(value))
        length += len(before) + len(value)
        at = mark.end()
    return "".join([*parts, template[at:]]), spans


def _takes_an(value: str) -> bool:
    return bool(_AN.match(value)) and not _NOT_AN.match(value)


def _careless(text: str, spans: dict[str, tuple[int, int]]) -> str:
    """The text without its last stop and, where no value and no "I" stands there, without its first capital. Spans stay right."""
    if text.endswith(".") and not any(end == len(text) for _, end in spans.values()):
        text = text[:-1]
    if not re.match(r"I\b", text) and all(begin > 0 for begin, _ in spans.values()):
        text = text[0].lower() + text[1:]
    return text


ASK_LEADS = (
    "Remind me: ", "Quick question: ", "Hey, ", "Sorry, but ", "One thing: ", "Can you help me? ", "Do you remember? ", "I've forgotten. ", "So, ", "Ok, ",
    "By the way, ", "Let me test you. ", "Hm. ", "Now then: ", "Before I go: ",
)  # fmt: skip
ASK_TAILS = (
    " I forgot.",
    " Do you remember?",
    " I told you before.",
    " It's gone right out of my head.",
    " Please.",
    " Thanks!",
    " I did tell you.",
)
SAY_LEADS = (
    "Morning! ", "Hi. ", "Oh, ", "Right, ", "Anyway. ", "Ok so, ", "Hello again. ", "Just so you know: ", "Listen, ", "Not important but ", "Hmm, ",
    "Ha, ", "Well. ", "Before I forget: ", "By the way, ",
)  # fmt: skip


def ask(rng: random.Random, told: Told) -> str:
    """One of the questions for a fact, sometimes with a word before or after it."""
    question = rng.choice(told.questions)
    roll = rng.random()
    if roll < 0.15:
        return rng.choice(ASK_LEADS) + question
    if roll < 0.25:
        return question + ("" if question[-1] in "?.!" else "?") + rng.choice(ASK_TAILS)
    return question


def chatty(rng: random.Random, told: Told, split: str) -> Told:
    """The same fact with a word before it, or with an ordinary question after it (of the split, as a person would go on)."""
    lead = rng.choice(SAY_LEADS) if rng.random() < 0.5 else ""
    text = lead + told.text
    if not lead or rng.random() < 0.5:
        text += ("" if text[-1] in ".!?" else ".") + " " + rng.choice(ordinary(split))
    begin, end = told.span
    return replace(told, text=text, span=(begin + len(lead), end + len(lead)))


def together(rng: random.Random, told: Sequence[Told]) -> str:
    """Several facts as one message. A fact that corrects an earlier message cannot be one of them (ValueError)."""
    if any(t.earlier for t in told):
        raise ValueError("a correction needs its own message")
    text = ""
    for t in told:
        if not text:
            text = t.text
            continue
        link = rng.choice((" Oh and ", " Also, ", " And ", " ", " By the way, ", " One more thing: "))
        first = t.text if link == " " or re.match(r"I\b", t.text) or t.span[0] == 0 else t.text[0].lower() + t.text[1:]
        text += ("" if text[-1] in ".!?" else ".") + link + first
    return text
