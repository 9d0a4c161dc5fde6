"""Dialogues of a data folder's `chat`: JSON lines of turns, and Synthetic-Persona-Chat's CSV. Knows these two forms; draws nothing."""

import csv
from collections.abc import Iterator
from pathlib import Path

from .. import textfile
from .leftout import LeftOut
from .plan import TrainError
from .records import FILE_BYTES_MAX, records

Dialogue = list[tuple[str, str]]
COLUMN = "Best Generated Conversation"
FIELD_MAX = 1 << 24
MARKED = "*slots.jsonl"  # dialogues in which values stand marked are models/tasks/natural's to read: some are held out


def dialogues(folder: Path, most: int = 4000, left: LeftOut | None = None) -> list[Dialogue]:
    """Dialogues as (role, content) turns, user first: the first `most` of each .jsonl without marked values, and all of each .csv. `left` hears of the others.

    Raises TrainError naming a file that is not of its form.
    """
    left = LeftOut() if left is None else left
    out: list[Dialogue] = []
    found = sorted(f for f in (folder / "chat").rglob("*") if f.is_file() and not f.name.startswith(".") and not f.match(MARKED))
    for file in (f for f in found if f.suffix.lower() == ".jsonl"):
        out += _kept(_told(file, most, left), file, left)
    for file in (f for f in found if f.suffix.lower() == ".csv"):
        out += _kept(_conversations(file), file, left)
    for file in found:
        if file.suffix.lower() not in (".jsonl", ".csv"):
            left.add("file{s} in chat other than .jsonl and .csv", file)
    return out


def _kept(found: Iterator[Dialogue], file: Path, left: LeftOut) -> list[Dialogue]:
    out = []
    for dialogue in found:
        if len(dialogue) >= 2:
            out.append(dialogue)
        else:
            left.add("dialogue{s} of fewer than two turns", file)
    return out


def _told(file: Path, most: int, left: LeftOut) -> Iterator[Dialogue]:
    for count, (_, record) in enumerate(records(file), 1):
        if count > most:
            left.add(f"dialogue{{s}} after the first {most:,} of a file", file)
            continue
        try:
            yield [(str(t["role"]), str(t["content"])) for t in record["turns"]]
        except (KeyError, TypeError):
            raise TrainError(f"{file} dialogue {count}: it must have turns with role and content") from None


def _conversations(file: Path) -> Iterator[Dialogue]:
    csv.field_size_limit(FIELD_MAX)
    rows = csv.DictReader(line + "\n" for line in textfile.lines(file, FILE_BYTES_MAX, TrainError))
    try:
        if COLUMN not in (rows.fieldnames or ()):
            raise TrainError(f"{file} has no column {COLUMN!r} (Synthetic-Persona-Chat's form): give .jsonl, or remove it")
        for row in rows:
            said = [line.split(": ", 1)[1] for line in (row[COLUMN] or "").split("\n") if ": " in line]
            yield [("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(said)]
    except csv.Error as error:
        raise TrainError(f"{file} line {rows.line_num} is not CSV ({error}): restore the file") from None
