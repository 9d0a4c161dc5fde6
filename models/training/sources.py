"""Training texts from a folder: bAbI's stories, novels, dialogues. Knows files and formats; draws nothing.

The folder may hold `babi/qaN_*_train.txt`, `background/*.txt` (books, a paragraph a line), `chat/*.jsonl` (a dialogue a line:
{"turns": [{"role", "content"}]}), `chat/*.csv` (column `Best Generated Conversation`: `User 1: ...` lines) and `tinystories/*.jsonl`
({"text"}). What is not there is not used; what is there is checked.
"""

import csv
import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from ..tasks import babi, babilong
from .plan import TrainError

FILE_BYTES_MAX = 1 << 30
WORDS_MIN = 8
Dialogue = list[tuple[str, str]]
Told = tuple[str, list[str], list[tuple[str, str]]]


def stories(folder: Path, tasks: tuple[str, ...]) -> list[Told]:
    """(task, facts, questions with answers) of bAbI's training part. Empty without files."""
    where = folder / "babi"
    if not where.is_dir():
        return []
    out = []
    for task, file in babi.find(where).items():
        if task not in tasks:
            continue
        for story in babi.split(babi.read(file), "train"):
            facts = [line.text for line in story.lines if isinstance(line, babi.Fact)]
            out.append((task, facts, [(q.text, q.answer) for q in story.questions]))
    return out


def books(folder: Path, part: str = "train") -> list[Path]:
    """Book files of a part in name order, divided as evaluation divides them."""
    files = {file.name: file for file in sorted((folder / "background").glob("*.txt"))}
    return [files[name] for name in babilong.book_part(list(files), part)] if files else []


def lines(file: Path) -> list[str]:
    """The lines of a text file. Raises TrainError naming it."""
    try:
        if file.stat().st_size > FILE_BYTES_MAX:
            raise TrainError(f"{file} has {file.stat().st_size} bytes, more than the {FILE_BYTES_MAX} allowed: split it")
        return file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise TrainError(f"{file} is not UTF-8 (byte {error.start}): convert it") from None
    except OSError as error:
        raise TrainError(f"cannot read {file}: {error.strerror or error}") from None


def sentences(files: list[Path]) -> list[str]:
    """Sentences of at least eight words, in order."""
    split = re.compile(r"(?<=[.!?])\s+")
    return [s.strip() for file in files for line in lines(file) for s in split.split(line) if len(s.split()) >= WORDS_MIN]


def paragraphs(folder: Path, a_book: int = 300, stories_most: int = 1500) -> list[str]:
    """Paragraphs of more than 40 words of the training books (`a_book` of each), and short stories."""
    out = []
    for file in books(folder):
        out += [line.strip() for line in lines(file) if len(line.split()) > 40][:a_book]
    for file in sorted((folder / "tinystories").glob("*.jsonl")):
        out += [str(record.get("text", "")) for record in _records(file)][:stories_most]
    return [text for text in out if text]


def dialogues(folder: Path, most: int = 4000) -> list[Dialogue]:
    """Dialogues as (role, content) turns, user first: the first `most` of each .jsonl, and all of each .csv."""
    out: list[Dialogue] = []
    for file in sorted((folder / "chat").glob("*.jsonl")):
        for number, record in enumerate(islice(_records(file), most), 1):
            try:
                out.append([(str(t["role"]), str(t["content"])) for t in record["turns"]])
            except (KeyError, TypeError):
                raise TrainError(f"{file} dialogue {number}: it must have turns with role and content") from None
    for file in sorted((folder / "chat").glob("*.csv")):
        for row in csv.DictReader(lines_again(lines(file))):
            said = [line.split(": ", 1)[1] for line in (row.get("Best Generated Conversation") or "").split("\n") if ": " in line]
            out.append([("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(said)])
    return [d for d in out if len(d) >= 2]


def lines_again(rows: list[str]) -> Iterator[str]:
    """Lines with their ends, as the csv module wants them (a quoted field may span several)."""
    for row in rows:
        yield row + "\n"


def _records(file: Path) -> Iterator[Any]:
    for number, line in enumerate(lines(file), 1):
        try:
            record = json.loads(line)
        except ValueError:
            raise TrainError(f"{file} line {number} is not JSON: restore the file") from None
        if not isinstance(record, dict):
            raise TrainError(f"{file} line {number} must be a JSON object, not {type(record).__name__}")
        yield record
