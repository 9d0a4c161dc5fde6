"""Where a run's answers are kept, so that it can go on after a stop: one file of JSON lines a cell, and the settings they belong to.

Knows files and outcomes, no model. Files are written whole after every batch, atomically.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from ...models.atomic import write_error, write_file
from ...models.errors import LM2Error

SETTINGS = "settings.json"
Row = TypeVar("Row", bound=Any)


class EvaluationError(LM2Error):
    """A folder of answers belongs to another run or is damaged, or what was asked for cannot be measured."""


class Store:
    """A folder of answers. Raises EvaluationError when it holds answers of other settings, WriteError when it cannot be written."""

    def __init__(self, folder: Path, settings: dict[str, Any]):
        self.folder = folder
        try:
            (folder / "answers").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(folder, error, "nothing was written") from error
        file = folder / SETTINGS
        if file.exists():
            have = _parse(file, file.read_bytes())
            for key in sorted({*have, *settings}):
                if have.get(key) != settings.get(key):
                    raise EvaluationError(
                        f"{file} has answers for {key} {_short(have.get(key))}, this run has {_short(settings.get(key))}: choose another --out"
                    )
        else:
            write_json(file, settings)

    def load(self, name: str, row: type[Row]) -> list[Row]:
        """What a cell has so far, from the first on, as named tuples `row` with a `number`. Raises EvaluationError for a file of another form."""
        file = self._file(name)
        if not file.exists():
            return []
        out: list[Row] = []
        for number, line in enumerate(file.read_bytes().splitlines()):
            fields = _parse(file, line)
            if set(fields) != set(row._fields) or fields["number"] != number:
                raise EvaluationError(f"{file} line {number + 1} is no answer number {number} of this version: choose another --out")
            out.append(row(**fields))
        return out

    def load_rows(self, name: str, row: type[Row]) -> list[Row]:
        """What was kept of rows that several of one number may belong to. Raises EvaluationError for a file of another form."""
        file, out = self._file(name), []
        for number, line in enumerate(file.read_bytes().splitlines() if file.exists() else ()):
            fields = _parse(file, line)
            if set(fields) != set(row._fields):
                raise EvaluationError(f"{file} line {number + 1} is no answer of this version: choose another --out")
            out.append(row(**fields))
        return out

    def save(self, name: str, outcomes: Sequence[Any]) -> None:
        """Replace the answers of a cell."""
        lines = "".join(json.dumps(o._asdict(), ensure_ascii=False) + "\n" for o in outcomes)
        write_file(self._file(name), lambda f: f.write(lines.encode("utf-8", "backslashreplace")))

    def _file(self, name: str) -> Path:
        return self.folder / "answers" / (re.sub(r"[^\w-]", "_", name) + ".jsonl")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically. Raises WriteError; ValueError for a number that is not finite."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_file(path, lambda f: f.write(text.encode("utf-8", "backslashreplace")))


def _parse(file: Path, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise EvaluationError(f"{file} is damaged ({error}): remove it or choose another --out") from None
    if not isinstance(value, dict):
        raise EvaluationError(f"{file} is damaged (no object): remove it or choose another --out")
    return value


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:80] + "..."
