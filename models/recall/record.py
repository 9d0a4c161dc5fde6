"""The record of a recall's part: a JSON object with its format and the fields that this version knows. Knows no arrays."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..config import read_json
from ..errors import ModelFileError


def read_record(where: Path, what: str, form: int, fields: Collection[str], remedy: str) -> Mapping[str, Any]:
    """The record of `what` in a file, of format `form`, with no field beside `fields`. Raises ModelFileError naming the file, both values and the remedy."""
    record = read_json(where)
    if not isinstance(record, Mapping) or type(record.get("format")) is not int or record["format"] != form:
        found = record.get("format") if isinstance(record, Mapping) else type(record).__name__
        raise ModelFileError(f"{where}: format {found!r} must be {form}: it is no {what} of this version of lm2")
    if unknown := set(record) - {"format", *fields}:
        raise ModelFileError(f"{where}: {sorted(unknown)[0]!r} is not a field that this version of lm2 knows: update lm2, or {remedy}")
    return record
