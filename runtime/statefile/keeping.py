"""Between a session and its file: which part of a session goes where in a Record, and back.

The unfinished chunk is kept as token ids and re-run when the session goes on: the file then opens on any backend. What every session
file must be is file.py's business; here it is checked that the parts meant for a session are ones a session can have. Knows cursors, not Session.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...models.errors import PromptError
from ..backend import MemoryState
from ..session.cursor import Cursor
from ..session.ledger import Ledger
from ..session.sampling import Sampling
from . import notes as turns_in
from .check import DAMAGED, check_count, plain, positions
from .file import Expected, Meta, Moment, Record, read_session, write_session
from .record import ID_MAX, SessionValueError

if TYPE_CHECKING:
    from ..loading import Model


class Kept(NamedTuple):
    """What a file keeps of a session; the names are Session's own. created: ISO 8601, empty before the first save."""

    system: str | None
    sampling: Sampling
    seed: int
    overlap: int
    window: int
    at: Cursor
    snapshots: list[Cursor]
    transcript: list[dict[str, str]]
    numbers: list[int]
    forgotten_turns: int
    created: str


def expected(model: "Model") -> Expected:
    """What a session file must match to be opened on `model`."""
    sha = model.tokenizer.sha256 if model.tokenizer else "0" * 64
    c = model.config
    return Expected(model.fingerprint, model.name, sha, c.bank_shape(), c.memory.chunk, c.vocab_size, c.max_position_embeddings)


def save(model: "Model", kept: Kept, path: Path) -> tuple[int, str]:
    """Write what is kept to `path`, atomically; bytes written, and when the session was created. Raises WriteError or a SessionError."""
    wanted, about = expected(model), model.backend.describe()
    hosts: dict[int, np.ndarray] = {}
    ledgers: list[str] = []

    def moment(at: Cursor) -> Moment:
        bank = hosts.get(id(at.memory))
        if bank is None:
            bank = hosts[id(at.memory)] = model.backend.to_host(at.memory)  # (l, 1, n, d)
            if at.ledger is not None and bank.shape[2] <= turns_in.ROWS_MAX:
                ledgers.append(turns_in.packed(at.ledger))
        notes: dict[str, Any] = {"starts": list(at.starts), "seen": at.seen, "draws": at.draws, "turns": at.turns}
        notes |= {turns_in.NUMBER: at.number, turns_in.SPANS: [list(s) for s in at.spans]}
        return Moment(bank, at.memory.written, at.tokens + at.pending, notes, at.carried, at.folds)

    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    document: dict[str, Any] = {
        "system": kept.system,
        "transcript": kept.transcript,
        "forgotten_turns": kept.forgotten_turns,
        "overlap": kept.overlap,
        "window": kept.window,
        "sampling": kept.sampling.to_dict(),
        turns_in.NUMBERS: kept.numbers,
    }
    meta = Meta(
        wanted.fingerprint, wanted.model, wanted.tokenizer, about.backend, about.dtype,
        kept.at.seen, kept.seed, kept.at.draws, kept.created or stamp, stamp,
    )  # fmt: skip
    record = Record(moment(kept.at), tuple(moment(s) for s in kept.snapshots), document, meta)
    if ledgers:
        document[turns_in.LEDGERS] = ledgers
    return write_session(path, record, wanted), meta.created


def check_contents(path: Path, record: Record, vocabulary: int = ID_MAX + 1) -> dict[int, Ledger] | None:
    """The parts of a record that only a session gives a meaning to. Returns the ledgers of its banks by the bank's id(), if it has them.

    Raises SessionValueError naming the file and the field.
    """

    def need(ok: bool, field: str, value: object, what: str) -> None:
        if not ok:
            raise SessionValueError(f"{path}: {field} {plain(value, 60)} must be {what}: {DAMAGED}")

    document = record.document
    counts = ("forgotten_turns", "overlap") if record.version == 1 else ("forgotten_turns", "overlap", "window")
    for key in ("system", "transcript", "sampling", *counts):
        if key not in document:
            raise SessionValueError(f"{path}: document.{key} is missing: {DAMAGED}")
    system, transcript, sampling = document["system"], document["transcript"], document["sampling"]
    need(system is None or isinstance(system, str), "document.system", system, "text or null")
    need(isinstance(transcript, list), "document.transcript", transcript, "a list")
    for i, message in enumerate(transcript):
        whole = isinstance(message, dict) and message.get("role") in ("user", "assistant") and isinstance(message.get("content"), str)
        need(whole, f"document.transcript[{i}]", message, "a message with role (user or assistant) and content (text)")
    for key in counts:
        check_count(f"{path}: document.{key}", document[key], DAMAGED)
    try:
        need(isinstance(sampling, dict), "document.sampling", sampling, "an object")
        Sampling(**sampling)
    except (TypeError, PromptError) as error:
        raise SessionValueError(f"{path}: document.sampling: {plain(error)}: {DAMAGED}") from None
    turns = document["forgotten_turns"] + len(transcript)
    for name, at in (("now", record.now), *((f"snapshot {i}", s) for i, s in enumerate(record.snapshots))):
        _check_notes(f"{path}: {name} notes", at.notes, len(at.tokens), turns, "turn" if record.version == 1 else "starts")
        turns_in.check_spans(f"{path}: {name} notes", at.notes, len(at.tokens))
        if record.version > 1:
            _check_fits(f"{path}: {name}", at, document["window"])
    for i, moment in enumerate(record.snapshots):
        like = next(m for m in (record.now, *record.snapshots) if m.bank is moment.bank)
        same = f"{like.written}, as where this bank stands first"
        need(moment.written == like.written, f"snapshot {i} written", moment.written, same)
    need(record.now.notes["turns"] == turns, "now notes.turns", record.now.notes["turns"], f"{turns}, as many as the transcript counts")
    if turns_in.NUMBERS in document:
        last = turns_in.number_from(record.now.notes)
        turns_in.check_numbers(f"{path}: document.{turns_in.NUMBERS}", document[turns_in.NUMBERS], len(transcript), last)
    return turns_in.ledgers(path, record, vocabulary)


def _check_notes(where: str, notes: Mapping[str, Any], tokens: int, turns: int, begins: str) -> None:
    for key in (begins, "seen", "draws", "turns"):
        if key not in notes:
            raise SessionValueError(f"{where}.{key} is missing: {DAMAGED}")
        most = {"turn": (tokens,), "turns": (turns,)}.get(key, ())
        if key != "starts":
            check_count(f"{where}.{key}", notes[key], DAMAGED, *most)
    starts = notes.get("starts", []) if begins == "starts" else []
    right = isinstance(starts, list) and all(type(s) is int and 0 <= s <= tokens for s in starts) and starts == sorted(set(starts))
    if not right:
        raise SessionValueError(f"{where}.starts {plain(starts, 60)} must ascend from 0 to at most {tokens} (tokens): {DAMAGED}")


def _check_fits(where: str, at: Moment, window: int) -> None:
    """A window of so many positions holds the moment's tokens, and has room for one that was not carried over."""
    if len(at.tokens) > window:
        raise SessionValueError(f"{where} has {len(at.tokens)} tokens, its window {window} positions (document.window): {DAMAGED}")
    if at.carried and at.carried >= window:
        raise SessionValueError(f"{where}: carried {at.carried} must be less than its window of {window} positions: {DAMAGED}")


def _check_cell(path: Path, record: Record, cell: str) -> None:
    """What only one kind of memory can have. Raises SessionValueError."""
    for name, at in (("now", record.now), *((f"snapshot {i}", s) for i, s in enumerate(record.snapshots))):
        if cell == "released" and (at.carried or at.folds):
            what = f"{path}: {name} has {at.carried} carried tokens and {len(at.folds)} folds, this model's cell (released) has neither"
            raise SessionValueError(f"{what}: {DAMAGED}")


def restore(model: "Model", path: Path) -> Kept:
    """Read a session file for `model`; cursors are at rest. All checks are done before anything is returned. Raises a SessionError."""
    record = read_session(path, expected(model))
    ledgers = check_contents(path, record, model.config.vocab_size)
    _check_cell(path, record, model.config.memory.cell)
    document, most = record.document, model.config.max_position_embeddings
    if record.version > 1 and document["window"] > most:
        raise SessionValueError(f"{path}: its window of {document['window']} tokens is larger than {positions(most)}")
    memories: dict[int, MemoryState] = {}
    unknown: dict[int, Ledger] = {}

    def cursor(m: Moment) -> Cursor:
        if id(m.bank) not in memories:
            memories[id(m.bank)] = model.backend.from_host(m.bank, m.written)
        notes = m.notes
        starts = tuple(notes["starts"]) if record.version > 1 else (notes["turn"],) if m.tokens else ()
        ledger = None
        if model.remembers and model.config.memory.cell == "gated":
            if ledgers is None and id(m.bank) not in unknown:
                unknown[id(m.bank)] = Ledger.unknown(m.bank[: model.config.memory.memories, 0], model.config.rms_norm_eps)
            ledger = (unknown if ledgers is None else ledgers)[id(m.bank)]
        return Cursor(
            memories[id(m.bank)], tokens=m.tokens, folds=m.folds, carried=m.carried, starts=starts,
            seen=notes["seen"], draws=notes["draws"], turns=notes["turns"],
            number=turns_in.number_from(notes), spans=turns_in.spans_from(notes), ledger=ledger,
        )  # fmt: skip

    return Kept(
        document["system"],
        Sampling(**document["sampling"]),
        record.meta.seed,
        document["overlap"],
        document["window"] if record.version > 1 else max(model.window, model.config.memory.chunk),
        cursor(record.now),
        [cursor(s) for s in record.snapshots],
        [{"role": m["role"], "content": m["content"]} for m in document["transcript"]],
        turns_in.numbers_from(document, document["transcript"]),
        document["forgotten_turns"],
        record.meta.created,
    )


def unusable(path: Path, error: PromptError) -> SessionValueError:
    """The error of a file whose parts are right one by one and do not fit together."""
    return SessionValueError(f"{path}: {plain(error)}: {DAMAGED}")
