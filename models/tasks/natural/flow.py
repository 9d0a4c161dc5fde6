"""Conversations for training, written by hand: messages in a natural flow, and what may be asked of each later. Knows texts; draws nothing.

    [the boiler]                          a conversation
    < When does the boiler man come?      what the assistant asked just before, where the next message replies to a question
    He can't come till the 19th           a message; others of the conversation stand around it
    ? When is the boiler man coming?      two or more questions in different words
    = He comes on {the 19th}.             the answer to them as a sentence; in braces what the message tells, word for word
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .answers import mentions
from .errors import CorpusError
from .files import FOLDER, lines

WORDINGS = 2  # of a question at least
_TITLE = re.compile(r"\[([^\[\]]+)\]")
_VALUE = re.compile(r"([^{}]*)\{([^{}]+)\}([^{}]*)")


@dataclass(frozen=True)
class Answered:
    """questions: different wordings; reply: a sentence; value: what it has of the message."""

    questions: tuple[str, ...]
    reply: str
    value: str


@dataclass(frozen=True)
class Flow:
    """A conversation: what the user says, in order, what may be asked of each message, and before each what the assistant had asked, or nothing."""

    title: str
    messages: tuple[str, ...]
    asked: tuple[tuple[Answered, ...], ...]
    before: tuple[str, ...]


@cache
def flows() -> tuple[Flow, ...]:
    """The conversations of the package (data/talks_train_*.txt)."""
    return read_flows(sorted(FOLDER.glob("talks_train_*.txt")))


def read_flows(paths: Iterable[Path]) -> tuple[Flow, ...]:
    """Conversations of files in the form above. Raises CorpusError for a line out of place, a question that names its value or stands alone, a value that
    its message lacks, a message or a title that stands twice, and a conversation that tells nothing."""
    found: dict[str, tuple[list[str], list[list[Answered]], list[str]]] = {}
    said: set[str] = set()
    for path in paths:
        messages: list[str] = []
        asked: list[list[Answered]] = []
        questions: list[str] = []
        title = before = ""
        for number, line in lines(path):
            where = f"{path.name} line {number}"
            if questions and line[0] not in "?=":
                raise CorpusError(f"{where}: the questions before have no `= answer`")
            if before and line[0] in "[?=<":
                raise CorpusError(f"{where}: no message replies to {before[:40]!r}")
            if head := _TITLE.fullmatch(line):
                title = head[1]
                if title in found:
                    raise CorpusError(f"{where}: [{title}] stands twice")
                messages, asked, befores = found[title] = [], [], []
            elif not title:
                raise CorpusError(f"{where}: {line[:40]!r} stands before the first [title]")
            elif line.startswith(("? ", "= ")):
                if not messages:
                    raise CorpusError(f"{where}: {line[:40]!r} stands before the first message")
                if line[0] == "?":
                    questions.append(line[2:].strip())
                    continue
                asked[-1].append(_answered(messages[-1], questions, line[2:].strip(), where))
                questions = []
            elif line.startswith("< ") and line.endswith("?"):
                before = line[2:].strip()
            elif line[0] in "?=[<" or "{" in line:
                raise CorpusError(f"{where}: {line[:40]!r} is no message: a blank is missing after ?, = or <, < asks nothing, or braces stand in it")
            else:
                if line.lower() in said:
                    raise CorpusError(f"{where}: {line[:40]!r} stands twice")
                said.add(line.lower())
                messages.append(line)
                asked.append([])
                befores.append(before)
                before = ""
        if questions:
            raise CorpusError(f"{path.name}: the last questions have no `= answer`")
        if before:
            raise CorpusError(f"{path.name}: no message replies to {before[:40]!r}")
    for title, (_, asked, _) in found.items():
        if not any(asked):
            raise CorpusError(f"[{title}]: tells nothing that is asked for")
    return tuple(Flow(title, tuple(messages), tuple(map(tuple, asked)), tuple(befores)) for title, (messages, asked, befores) in found.items())


def _answered(message: str, questions: list[str], text: str, where: str) -> Answered:
    parts = _VALUE.fullmatch(text)
    if not parts:
        raise CorpusError(f"{where}: {text[:60]!r} must have one value in braces")
    value = parts[2]
    if value.lower() not in message.lower():
        raise CorpusError(f"{where}: {value!r} does not stand in its message, {message[:60]!r}")
    if len(set(questions)) < WORDINGS or len(set(questions)) < len(questions):
        raise CorpusError(f"{where}: {len(set(questions))} different questions, at least {WORDINGS}, none twice")
    for question in questions:
        if mentions(question, value):
            raise CorpusError(f"{where}: {question!r} names its value, {value!r}")
    reply = f"{parts[1]}{value}{parts[3]}"
    return Answered(tuple(questions), reply[0].upper() + reply[1:], value)
