"""Dialogues in which values stand marked, in the form of the Schema-Guided Dialogue data set: what users told in their own sentences.

A folder (or its `chat/`) has `*slots.jsonl`, a dialogue a line:
{"id", "services", "turns": [{"role", "content", "slots": [["service.slot", begin, end]]}]}, `*schema.json` {"service.slot": "what it means"} and may
have `questions.json`: {"held_out": [services], "questions": {"service.slot": [questions]}} or {"service.slot": a question or several}. Questions come
from there, else from the package's data/slot_questions.json, else from the description. Nothing of a data set comes with the package.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...textfile import lines, read_text
from .answers import mentions
from .descriptions import question_from_description
from .errors import CorpusError
from .files import data_file

ROLES = ("user", "assistant")
FILE_BYTES_MAX = 1 << 30


@dataclass(frozen=True)
class Value:
    """A value a user told. turn: which one; text: turns[turn][1][begin:end]; slot: `service.slot`; questions: that do not name it."""

    turn: int
    begin: int
    end: int
    text: str
    slot: str
    questions: tuple[str, ...]

    @property
    def service(self) -> str:
        return self.slot.split(".")[0]


@dataclass(frozen=True)
class Dialogue:
    """turns: (role, content); values: what users told, in order; split: `heldout` where any of its services is held out, else `train`."""

    id: str
    turns: tuple[tuple[str, str], ...]
    values: tuple[Value, ...]
    services: tuple[str, ...]
    split: str


@lru_cache(1024)
def _described(description: str) -> str:
    """The same as question_from_description, which takes long beside reading a dialogue."""
    return question_from_description(description)


@dataclass(frozen=True)
class Schema:
    """descriptions and questions: by slot; held_out: services that are not for training."""

    descriptions: Mapping[str, str]
    questions: Mapping[str, tuple[str, ...]]
    held_out: frozenset[str]

    def asked(self, slot: str) -> tuple[str, ...]:
        """The questions for a slot, and last one made of its description; of a held-out service that alone."""
        described = _described(self.descriptions[slot])
        if slot in self.questions and slot.split(".")[0] not in self.held_out:
            return tuple(dict.fromkeys((*self.questions[slot], described)))
        return (described,)


def dialogues(folder: Path) -> Iterator[Dialogue]:
    """The dialogues of a folder, file by file in name order. Raises CorpusError naming file, line and field for what breaks the form."""
    home, files = _files(folder)
    schema = read_schema(home)
    seen: dict[str, str] = {}
    for file in files:
        for number, line in enumerate(lines(file, FILE_BYTES_MAX, CorpusError), 1):
            if line.strip():
                where = f"{file} line {number}"
                dialogue = _dialogue(_object(line, where), schema, where)
                if dialogue.id in seen:
                    raise CorpusError(f"{where}: id {dialogue.id!r} is there already ({seen[dialogue.id]}): give each dialogue its own")
                seen[dialogue.id] = where
                yield dialogue


def _files(folder: Path) -> tuple[Path, list[Path]]:
    for home in (folder, folder / "chat"):
        files = sorted(home.glob("*slots.jsonl"))
        if files:
            return home, files
    raise CorpusError(f"{folder} has no *slots.jsonl, nor has {folder / 'chat'}: give the folder of the dialogues")


def read_schema(home: Path) -> Schema:
    """Descriptions, questions and held-out services for a folder's dialogues. Raises CorpusError naming file and slot."""
    files = sorted(home.glob("*schema.json"))
    if len(files) != 1:
        raise CorpusError(f"{home} has {len(files)} files *schema.json, and needs one: what each slot means")
    descriptions = _object(read_text(files[0], FILE_BYTES_MAX, CorpusError), str(files[0]))
    for slot, text in descriptions.items():
        if slot.count(".") != 1 or not all(slot.split(".")) or not isinstance(text, str) or not text.strip():
            raise CorpusError(f"{files[0]}: {slot!r} must be `service.slot` with a description, not {text!r}")
    own = data_file("slot_questions.json")
    held_out, questions = _questions(own)
    given = home / "questions.json"
    if given.exists():
        more_held, more = _questions(given)
        for slot in more:
            if slot not in descriptions:
                raise CorpusError(f"{given}: {slot!r} is no slot of {files[0].name}")
        held_out |= more_held
        questions |= more
    return Schema(descriptions, questions, frozenset(held_out))


def _questions(file: Path) -> tuple[set[str], dict[str, tuple[str, ...]]]:
    found = _object(read_text(file, FILE_BYTES_MAX, CorpusError), str(file))
    held_out: Any = []
    if "questions" in found:
        unknown = sorted(set(found) - {"held_out", "questions"})
        if unknown:
            raise CorpusError(f"{file}: {unknown[0]!r} is neither held_out nor questions")
        held_out, found = found.get("held_out", []), found["questions"]
    if not isinstance(held_out, list) or not all(isinstance(service, str) for service in held_out):
        raise CorpusError(f"{file}: held_out must be a list of services, not {held_out!r}")
    if not isinstance(found, dict):
        raise CorpusError(f"{file}: questions must be an object of slots, not {type(found).__name__}")
    questions = {}
    for slot, asked in found.items():
        asked = [asked] if isinstance(asked, str) else asked
        if not isinstance(asked, list) or not asked or not all(isinstance(q, str) and q.strip() for q in asked):
            raise CorpusError(f"{file}: {slot!r} must have a question or a list of them, not {asked!r}")
        questions[slot] = tuple(asked)
    return set(held_out), questions


def _dialogue(record: dict[str, Any], schema: Schema, where: str) -> Dialogue:
    name, services, said = record.get("id"), record.get("services"), record.get("turns")
    if not isinstance(name, str) or not name:
        raise CorpusError(f"{where}: id must be a text, not {name!r}")
    if not isinstance(services, list) or not services or not all(isinstance(s, str) for s in services):
        raise CorpusError(f"{where}: services must be a list of names, not {services!r}")
    if not isinstance(said, list) or not said:
        raise CorpusError(f"{where}: turns must be a list with something in it")
    turns: list[tuple[str, str]] = []
    values: list[Value] = []
    for number, turn in enumerate(said):
        at = f"{where}, turn {number}"
        if not isinstance(turn, dict) or turn.get("role") not in ROLES or not isinstance(turn.get("content"), str):
            raise CorpusError(f"{at}: it must have a role of {ROLES} and a content")
        turns.append((turn["role"], turn["content"]))
        marked = turn.get("slots", [])
        if not isinstance(marked, list):
            raise CorpusError(f"{at}: slots must be a list, not {marked!r}")
        for mark in marked:
            value = _value(mark, number, turn["content"], schema, at)
            if value.service not in services:
                raise CorpusError(f"{at}: {value.slot!r} is of none of the dialogue's services, {services}")
            if turn["role"] == "user":
                values.append(value)
    held = any(service in schema.held_out for service in services)
    return Dialogue(name, tuple(turns), tuple(values), tuple(services), "heldout" if held else "train")


def _value(mark: Any, turn: int, content: str, schema: Schema, at: str) -> Value:
    if not isinstance(mark, list) or len(mark) != 3 or not isinstance(mark[0], str) or any(type(n) is not int for n in mark[1:]):
        raise CorpusError(f"{at}: a slot must be [name, begin, end], not {mark!r}")
    slot, begin, end = mark
    if slot not in schema.descriptions:
        raise CorpusError(f"{at}: the schema has no slot {slot!r}")
    if not 0 <= begin < end <= len(content):
        raise CorpusError(f"{at}: {slot} is at {begin} to {end} of a content of {len(content)} characters")
    text = content[begin:end]
    return Value(turn, begin, end, text, slot, tuple(q for q in schema.asked(slot) if not mentions(q, text)))


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        raise CorpusError(f"{where} is not JSON: restore the file") from None
    if not isinstance(found, dict):
        raise CorpusError(f"{where} must be a JSON object, not {type(found).__name__}")
    return found
