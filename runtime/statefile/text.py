"""The checks on a session file's text: JSON that every reader gives back as it is, and the table of snapshots.

Knows nothing of arrays but their counts. Same rules for reading and writing.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from .check import DAMAGED, WRITTEN, check_count, check_window, plain
from .record import (
    COUNT_MAX,
    DOCUMENT_BYTES_MAX,
    JSON_DEPTH_MAX,
    SEED_MAX,
    SNAPSHOTS_MAX,
    SessionFormatError,
    SessionTooLargeError,
    SessionValueError,
)

EMPTY: dict[str, Any] = {"carried": 0, "folds": []}


def build_json(
    where: str, document: dict[str, Any], notes: dict[str, Any], window: dict[str, Any], table: list[dict[str, Any]], remedy: str
) -> bytes:
    """session.json as UTF-8 bytes, checked. window: carried and folds of the current moment. Raises SessionValueError or SessionTooLargeError."""
    for name, part in [
        ("document", document),
        ("notes", notes),
        *((f"snapshot {i} notes", r["notes"]) for i, r in enumerate(table)),
    ]:
        if type(part) is not dict:
            raise SessionValueError(f"{where}{name} is a {type(part).__name__}, it must be a dict: {remedy}")
    content = {"document": document, "notes": notes, "window": window, "snapshots": table}
    check_json(f"{where}session.json", content, remedy)
    raw = json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode("utf-8")
    if len(raw) > DOCUMENT_BYTES_MAX:
        raise SessionTooLargeError(
            f"{where}document, notes and snapshots are {len(raw)} bytes of JSON, at most {DOCUMENT_BYTES_MAX} are "
            f"allowed (start a new session for more text): {remedy}"
        )
    return raw


def parse_json(path: Path, raw: bytes, version: int) -> dict[str, Any]:
    """The checked content of session.json, with an empty `window` in version 1. Raises SessionFormatError or SessionValueError."""
    where = f"{path}: session.json"
    try:
        content = json.loads(raw.decode("utf-8"), object_pairs_hook=no_repeats, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        raise SessionFormatError(f"{where} is not valid JSON ({plain(error)}): {DAMAGED}") from None
    check_json(where, content, DAMAGED)
    kinds = {"document": dict, "notes": dict, "window": dict, "snapshots": list}
    if version == 1:
        del kinds["window"]
    if not isinstance(content, dict) or set(content) != set(kinds):
        *names, last = kinds
        raise SessionFormatError(f"{where} must hold {', '.join(names)} and {last}, and nothing else: {DAMAGED}")
    for key, kind in kinds.items():
        if not isinstance(content[key], kind):
            raise SessionFormatError(f"{where}: {key} must be a JSON {'object' if kind is dict else 'list'}: {DAMAGED}")
    if set(content.setdefault("window", dict(EMPTY))) != set(EMPTY):
        raise SessionFormatError(f"{where}: window must hold carried and folds, and nothing else: {DAMAGED}")
    return content


def check_table(path: Path, table: Sequence[Any], banks: int, tokens: int, window: int, version: int) -> None:
    """The table of snapshots against the arrays: `banks` stored banks, first used in their order; `tokens` ids in all; `window`: of one row at most.

    Raises SessionFormatError, or SessionValueError for a number out of range.
    """
    if len(table) > SNAPSHOTS_MAX:
        raise SessionFormatError(f"{path}: it has {len(table)} snapshots, at most {SNAPSHOTS_MAX} are allowed: {DAMAGED}")
    used = total = 0
    written = WRITTEN[version]
    names = {"bank", written, "tokens", "notes"} | (set(EMPTY) if version > 1 else set())
    for i, row in enumerate(table):
        where = f"{path}: snapshot {i}"
        if not isinstance(row, dict) or set(row) != names:
            *others, last = sorted(names)
            raise SessionFormatError(f"{where} must hold {', '.join(others)} and {last}, and nothing else: {DAMAGED}")
        if not isinstance(row["notes"], dict):
            raise SessionFormatError(f"{where}: notes must be a JSON object: {DAMAGED}")
        check_count(f"{where}: {written}", row[written], DAMAGED)
        check_count(f"{where}: tokens", row["tokens"], DAMAGED, window)
        if version > 1:
            check_window(where, row["tokens"], row["carried"], row["folds"], DAMAGED)
        if type(row["bank"]) is not int or not -1 <= row["bank"] <= min(used, banks - 1):
            most = min(used, banks - 1)
            raise SessionValueError(f"{where}: bank {plain(row['bank'])} must be from -1 to {most}: {DAMAGED}")
        used = max(used, row["bank"] + 1)
        total += row["tokens"]
    if used != banks or total != tokens:
        have = f"snapshots use {used} banks and {total} tokens, the file stores {banks} and {tokens}"
        raise SessionFormatError(f"{path}: {have}: {DAMAGED}")


def check_json(where: str, value: Any, remedy: str) -> None:
    """Raise SessionValueError unless `value` is JSON that every reader gives back as it is.

    At most JSON_DEPTH_MAX deep; finite numbers; whole numbers of 64 bits; text that is valid Unicode; names that are
    text. Tuples count as lists (and come back as lists).
    """
    level: list[Any] = [value]
    for _ in range(JSON_DEPTH_MAX + 1):
        below: list[Any] = []
        for x in level:
            if isinstance(x, dict):
                if not all(type(k) is str for k in x):
                    raise SessionValueError(f"{where}: names of a JSON object must be text: {remedy}")
                below.extend(x.keys())
                below.extend(x.values())
            elif isinstance(x, (list, tuple)):
                below.extend(x)
            elif (problem := _bad_leaf(x)) is not None:
                raise SessionValueError(f"{where}: {problem}: {remedy}")
        if not below:
            return
        level = below
    raise SessionValueError(f"{where} is more than {JSON_DEPTH_MAX} levels deep: {remedy}")


def _bad_leaf(x: Any) -> str | None:
    if x is None or type(x) is bool:
        return None
    if type(x) is str:
        try:
            x.encode("utf-8")
        except UnicodeEncodeError:
            return f"text {plain(x, 40)!r} holds half of a surrogate pair"
        return None
    if type(x) is int:
        return None if -COUNT_MAX - 1 <= x <= SEED_MAX else "a whole number has more than 64 bits"
    if type(x) is float:
        return None if math.isfinite(x) else f"number {x} must be finite"
    return f"a {type(x).__name__} is not JSON"


def no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON from its pairs; for `object_pairs_hook`. Raises ValueError for a name that appears twice."""
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a name appears twice in one object")
    return out


def no_constant(name: str) -> NoReturn:
    """For `parse_constant`: NaN and the infinities are no JSON. Raises ValueError."""
    raise ValueError(f"{name} is not a JSON number")
