"""Ordinary talk, questions nobody told the answer to, and whole conversations written by hand for evaluation. Knows texts; draws nothing."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .answers import is_told
from .errors import CorpusError
from .files import data_file, lines
from .values import SPLITS

FACTS = 6  # of a conversation
_TITLE = re.compile(r"\[(.+)\]")


@dataclass(frozen=True)
class Asked:
    """A question of a conversation. value: what was told; accepted: other right forms; wrong: what must not be in the answer."""

    question: str
    value: str
    accepted: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()

    def is_right(self, reply: str) -> bool:
        """Whether a reply has the value in one of its forms, and nothing that is wrong."""
        return is_told(reply, self.value, self.accepted, self.wrong)


@dataclass(frozen=True)
class Talk:
    """A conversation: what the user says, in order, and of each message the questions for what it tells."""

    title: str
    messages: tuple[str, ...]
    asked: tuple[tuple[Asked, ...], ...]

    @property
    def questions(self) -> tuple[Asked, ...]:
        return tuple(question for asked in self.asked for question in asked)


@cache
def ordinary(split: str) -> tuple[str, ...]:
    """Messages that tell nothing and ask for nothing told, of `train` or `heldout`. Raises CorpusError for another split."""
    if split not in SPLITS:
        raise CorpusError(f"split {split!r} must be one of {SPLITS}")
    return _each(f"talk_{split}.txt")


@cache
def unknown() -> tuple[str, ...]:
    """Questions for facts that nobody told, in the form of questions for facts. For training."""
    return _each("unknown.txt")


@cache
def idle() -> tuple[str, ...]:
    """Messages that ask for nothing told, beside the ordinary ones of `train`. For training."""
    return _each("idle_train.txt")


def _each(name: str) -> tuple[str, ...]:
    found: dict[str, int] = {}
    for number, line in lines(data_file(name)):
        if line.lower() in found:
            raise CorpusError(f"{name} line {number}: {line!r} stands in line {found[line.lower()]} already")
        found[line.lower()] = number
    return tuple(line for _, line in lines(data_file(name)))


@cache
def talks() -> tuple[Talk, ...]:
    """The held-out conversations of the package, on which settings may be chosen."""
    return read_talks(data_file("heldout_talks.txt"))


@cache
def unseen() -> tuple[Talk, ...]:
    """Conversations written after and apart from everything that was tuned. Not to be used to choose anything: no setting, weight or wording."""
    return read_talks(data_file("unseen_talks.txt"))


def read_talks(path: Path) -> tuple[Talk, ...]:
    """Conversations of a file: `[title]`, messages, and after each `? question = value / other form ! wrong value` for what it tells.

    Raises CorpusError for a line out of place, a value its message or another form's lacks, and a conversation without FACTS questions.
    """
    found: list[tuple[str, list[str], list[list[Asked]]]] = []
    for number, line in lines(path):
        where = f"{path.name} line {number}"
        title = _TITLE.fullmatch(line)
        if title:
            found.append((title[1], [], []))
        elif not found:
            raise CorpusError(f"{where}: {line[:40]!r} stands before the first [title]")
        elif line.startswith("? "):
            if not found[-1][1]:
                raise CorpusError(f"{where}: a question stands before the first message")
            asked = _question(line[2:], where)
            if not any(is_told(message, v) for v in (asked.value, *asked.accepted) for message in found[-1][1]):
                raise CorpusError(f"{where}: {asked.value!r} was not told before it is asked for")
            if asked.is_right(asked.question):
                raise CorpusError(f"{where}: the question names its value, {asked.value!r}")
            found[-1][2][-1].append(asked)
        elif line[0] in "?=":
            raise CorpusError(f"{where}: {line[:40]!r} is no message: a blank is missing after the ?")
        else:
            found[-1][1].append(line)
            found[-1][2].append([])
    for title_, messages, asked_ in found:
        if sum(map(len, asked_)) != FACTS:
            raise CorpusError(f"{path.name} [{title_}]: {sum(map(len, asked_))} questions, not {FACTS}")
        if len(set(messages)) < len(messages):
            raise CorpusError(f"{path.name} [{title_}]: a message stands twice")
    if len({title_ for title_, _, _ in found}) < len(found):
        raise CorpusError(f"{path.name}: two conversations have the same title")
    return tuple(Talk(title_, tuple(messages), tuple(map(tuple, asked_))) for title_, messages, asked_ in found)


def _question(text: str, where: str) -> Asked:
    question, equals, rest = text.partition(" = ")
    right, *wrong = (part.strip() for part in rest.split(" ! "))
    forms = [form.strip() for form in right.split(" / ")]
    if not equals or not all(forms) or not all(wrong):
        raise CorpusError(f"{where}: {text[:60]!r} must be `question = value / other form ! wrong one`")
    return Asked(question.strip(), forms[0], tuple(forms[1:]), tuple(wrong))
