"""What a session file says of whose words its memory holds: ledgers as text of constant length, and where the turns of a window begin.

All of it may be missing: older versions of lm2 neither wrote nor read it. Knows the entries of a ledger and their limits, no cursor.
Axes: n rows, t tokens.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..session.ledger import ENTRY, HEAD, NONE, UNKNOWN, Ledger, Spans
from .check import DAMAGED, check_count, plain
from .record import Record, SessionValueError

TURN_MAX = (1 << 31) - 1
ROWS_MAX = 1 << 12  # of a memory whose ledger is kept: the text of a session file is bounded
LEDGERS, NUMBERS = "ledgers", "numbers"  # of the document
NUMBER, SPANS = "number", "spans"  # of a moment's notes


def packed(ledger: Ledger) -> str:
    """A ledger as base64 of its entries, little-endian, 44 bytes a row."""
    return base64.b64encode(ledger.rows.tobytes()).decode("ascii")


def unpacked(where: str, text: object, n: int, written: int, turns: int, vocabulary: int) -> Ledger:
    """The ledger of n rows from `packed`'s text. Raises SessionValueError naming `where`: another length, a token's number that is not below `written`
    or not of its row, an id outside the vocabulary, a turn above `turns`, a size that is negative or not finite,
    a part that is none.
    """

    def need(ok: bool | np.bool_, what: str) -> None:
        if not ok:
            raise SessionValueError(f"{where}: {what}: {DAMAGED}")

    size = 4 * ((n * ENTRY.itemsize + 2) // 3)
    need(isinstance(text, str) and len(text) == size, f"{plain(text, 40)} must be text of {size} characters, {n} rows of {ENTRY.itemsize} bytes in base64")
    assert isinstance(text, str)
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise SessionValueError(f"{where} is not base64 ({plain(error)}): {DAMAGED}") from None
    need(len(raw) == n * ENTRY.itemsize and base64.b64encode(raw).decode() == text, f"it has {len(raw)} bytes, {n} rows have {n * ENTRY.itemsize}")
    rows = np.frombuffer(raw, ENTRY).copy()  # (n,)
    number, token, turns_in, sizes = (rows[name] for name in ("number", "token", "turns", "sizes"))
    known = number >= 0
    need((number >= NONE).all() and (number < written).all(), f"token numbers must be from {NONE} to {written - 1} (tokens in the memory)")
    need((number[known] % n == np.flatnonzero(known)).all(), f"token number i must be in row i mod {n}")
    need((token[known] >= 0).all() and (token < vocabulary).all() and (token[~known] == NONE).all(), f"token ids must be from 0 to {vocabulary - 1}")
    need((turns_in >= UNKNOWN).all() and (turns_in <= turns).all(), f"turns must be from {UNKNOWN} to {turns} (turns so far)")
    need((turns_in[~known, 0] <= HEAD).all(), "a row without a token is a turn's")
    need(np.isfinite(sizes).all() and not np.signbit(sizes).any(), "sizes must be finite, 0 or more")
    need((turns_in[:, 1:][sizes[:, 1:] == 0] == HEAD).all(), "a turn has a part of no size in a row that is another's")
    return Ledger(rows)


def ledgers(path: Path, record: Record, vocabulary: int) -> dict[int, Ledger] | None:
    """The ledgers of a record's banks, by the bank's id(); None where it has none. Raises SessionValueError."""
    if LEDGERS not in record.document:
        return None
    texts, banks = record.document[LEDGERS], _banks(record)
    if not isinstance(texts, list) or len(texts) != len(banks):
        raise SessionValueError(f"{path}: document.{LEDGERS} {plain(texts, 60)} must be a list of {len(banks)} texts, one of each bank: {DAMAGED}")
    turns = max((m.notes.get(NUMBER, 0) for m in (record.now, *record.snapshots)), default=0)
    return {
        id(m.bank): unpacked(f"{path}: document.{LEDGERS}[{i}]", text, m.bank.shape[2], m.written, turns, vocabulary)
        for i, (text, m) in enumerate(zip(texts, banks, strict=True))
    }


def _banks(record: Record) -> list[Any]:
    """One moment of each bank, in the order the file stores them in."""
    out: list[Any] = []
    for m in (record.now, *record.snapshots):
        if not any(m.bank is other.bank for other in out):
            out.append(m)
    return out


def check_numbers(where: str, numbers: object, messages: int, turns: int) -> None:
    """Raise SessionValueError unless `numbers` are the turns of so many messages: ascending, from 0 to `turns`."""
    right = isinstance(numbers, list) and len(numbers) == messages and all(type(n) is int and 0 <= n <= turns for n in numbers)
    if not right or list(numbers) != sorted(numbers):  # type: ignore[call-overload]
        raise SessionValueError(f"{where} {plain(numbers, 60)} must be {messages} turns (one a message), ascending from 0 to at most {turns}: {DAMAGED}")


def check_spans(where: str, notes: Mapping[str, Any], tokens: int) -> None:
    """Raise SessionValueError for a turn's number or beginnings of turns that a window of so many tokens cannot have. Either both are there or none."""
    if NUMBER not in notes and SPANS not in notes:
        return
    check_count(f"{where}.{NUMBER}", notes.get(NUMBER), DAMAGED, TURN_MAX)
    spans, number = notes.get(SPANS), notes[NUMBER]
    whole = isinstance(spans, list) and all(isinstance(s, list) and len(s) == 2 and all(type(x) is int for x in s) for s in spans)
    if whole:
        starts = [s for s, _ in spans]  # type: ignore[union-attr]
        whole = starts == sorted(set(starts)) and all(0 <= s <= tokens and UNKNOWN <= turn <= number for s, turn in spans)  # type: ignore[union-attr]
    if not whole:
        what = f"pairs of a position, ascending from 0 to at most {tokens} (tokens), and a turn from {UNKNOWN} to {number}"
        raise SessionValueError(f"{where}.{SPANS} {plain(spans, 60)} must be {what}: {DAMAGED}")


def spans_from(notes: Mapping[str, Any]) -> Spans:
    """The spans of checked notes."""
    return tuple((start, turn) for start, turn in notes.get(SPANS, ()))


def number_from(notes: Mapping[str, Any]) -> int:
    """The last turn's number of checked notes; where none was noted, as if every two messages had been a turn."""
    number: int = notes.get(NUMBER, (notes["turns"] + 1) // 2)
    return number


def numbers_from(document: Mapping[str, Any], messages: Sequence[object]) -> list[int]:
    """The turns of the messages of a checked document; 0 where none was noted."""
    return list(document.get(NUMBERS, [0] * len(messages)))
