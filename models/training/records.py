"""JSON files of records: a record a line (.jsonl), or one value in the file (.json). Knows JSON and lines; what is in a record is others' business."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import textfile
from .leftout import LeftOut
from .plan import TrainError

FILE_BYTES_MAX = 1 << 30


def records(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number of the line (from 1) and object of each line that is not blank. Raises TrainError naming the file and the line."""
    for number, line in enumerate(textfile.lines(file, FILE_BYTES_MAX, TrainError), 1):
        if not line.strip():
            continue
        value = _parsed(line, f"{file} line {number}")
        if not isinstance(value, dict):
            raise TrainError(f"{file} line {number} must be a JSON object, not {type(value).__name__}")
        yield number, value


def texts(file: Path, left: LeftOut) -> Iterator[str]:
    """The `text` of every record of a .jsonl or .json file, in order. `left` hears of records without one. Raises TrainError."""
    found = _whole(file) if file.suffix.lower() == ".json" else (record for _, record in records(file))
    for record in found:
        text = record if isinstance(record, str) else record.get("text") if isinstance(record, dict) else None
        if not isinstance(text, str):
            left.add('record{s} without a "text"', file)
        elif not text.strip():
            left.add("empty text{s}", file)
        elif not _unicode(text):
            left.add("text{s} with half a surrogate pair", file)
        elif "\0" in text:
            left.add("text{s} with a NUL character", file)
        else:
            yield text


def _whole(file: Path) -> Iterator[Any]:
    """The elements of a .json file's list, or its one object; a file of several lines that is none is read as .jsonl."""
    body = textfile.read_text(file, FILE_BYTES_MAX, TrainError)
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        yield from (record for _, record in records(file))
        return
    yield from value if isinstance(value, list) else [value]


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise TrainError(f"{where} is not JSON: restore the file") from None


def _unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
