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
from ..session.sampling import Sampling
from .check import DAMAGED, check_count, plain
from .file import Expected, Meta, Moment, Record, read_session, write_session
from .record import SessionValueError

if TYPE_CHECKING:
    from ..loading import Model


class Kept(NamedTuple):
    """What a file keeps of a session; the names are Session's own. created: ISO 8601, empty before the first save."""

    system: str | None
    sampling: Sampling
    seed: int
    overlap: int
    at: Cursor
    snapshots: list[Cursor]
    transcript: list[dict[str, str]]
    forgotten_turns: int
    created: str


def expected(model: "Model") -> Expected:
    """What a session file must match to be opened on `model`."""
    sha = model.tokenizer.sha256 if model.tokenizer else "0" * 64
    return Expected(model.fingerprint, model.name, sha, model.config.bank_shape(), model.config.memory.chunk, model.config.vocab_size)


def save(model: "Model", kept: Kept, path: Path) -> tuple[int, str]:
    """Write what is kept to `path`, atomically; bytes written, and when the session was created. Raises WriteError or a SessionError."""
    wanted, about = expected(model), model.backend.describe()
    hosts: dict[int, np.ndarray] = {}

    def moment(at: Cursor) -> Moment:
        bank = hosts.get(id(at.memory))
        if bank is None:
            bank = hosts[id(at.memory)] = model.backend.to_host(at.memory)  # (l, 1, n, d)
        notes = {"turn": at.turn, "seen": at.seen, "draws": at.draws, "turns": at.turns}
        return Moment(bank, at.memory.chunks, at.tokens + at.pending, notes)

    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    document: dict[str, Any] = {
        "system": kept.system,
        "transcript": kept.transcript,
        "forgotten_turns": kept.forgotten_turns,
        "overlap": kept.overlap,
        "sampling": kept.sampling.to_dict(),
    }
    meta = Meta(
        wanted.fingerprint, wanted.model, wanted.tokenizer, about.backend, about.dtype,
        kept.at.seen, kept.seed, kept.at.draws, kept.created or stamp, stamp,
    )  # fmt: skip
    record = Record(moment(kept.at), tuple(moment(s) for s in kept.snapshots), document, meta)
    return write_session(path, record, wanted), meta.created


def check_contents(path: Path, record: Record) -> None:
    """The parts of a record that only a session gives a meaning to. Raises SessionValueError naming the file and the field."""

    def need(ok: bool, field: str, value: object, what: str) -> None:
        if not ok:
            raise SessionValueError(f"{path}: {field} {plain(value, 60)} must be {what}: {DAMAGED}")

    document = record.document
    for key in ("system", "transcript", "forgotten_turns", "overlap", "sampling"):
        if key not in document:
            raise SessionValueError(f"{path}: document.{key} is missing: {DAMAGED}")
    system, transcript, sampling = document["system"], document["transcript"], document["sampling"]
    need(system is None or isinstance(system, str), "document.system", system, "text or null")
    need(isinstance(transcript, list), "document.transcript", transcript, "a list")
    for i, message in enumerate(transcript):
        whole = isinstance(message, dict) and message.get("role") in ("user", "assistant") and isinstance(message.get("content"), str)
        need(whole, f"document.transcript[{i}]", message, "a message with role (user or assistant) and content (text)")
    for key in ("forgotten_turns", "overlap"):
        check_count(f"{path}: document.{key}", document[key], DAMAGED)
    try:
        need(isinstance(sampling, dict), "document.sampling", sampling, "an object")
        Sampling(**sampling)
    except (TypeError, PromptError) as error:
        raise SessionValueError(f"{path}: document.sampling: {plain(error)}: {DAMAGED}") from None
    turns = document["forgotten_turns"] + len(transcript)
    for name, at in (("now", record.now), *((f"snapshot {i}", s) for i, s in enumerate(record.snapshots))):
        _check_notes(f"{path}: {name} notes", at.notes, len(at.tokens), turns)
    for i, moment in enumerate(record.snapshots):
        like = next(m for m in (record.now, *record.snapshots) if m.bank is moment.bank)
        same = f"{like.chunks}, as where this bank stands first"
        need(moment.chunks == like.chunks, f"snapshot {i} chunks", moment.chunks, same)
    need(record.now.notes["turns"] == turns, "now notes.turns", record.now.notes["turns"], f"{turns}, as many as the transcript counts")


def _check_notes(where: str, notes: Mapping[str, Any], tokens: int, turns: int) -> None:
    for key in ("turn", "seen", "draws", "turns"):
        if key not in notes:
            raise SessionValueError(f"{where}.{key} is missing: {DAMAGED}")
        most = {"turn": (tokens,), "turns": (turns,)}.get(key, ())
        check_count(f"{where}.{key}", notes[key], DAMAGED, *most)


def restore(model: "Model", path: Path) -> Kept:
    """Read a session file for `model`; cursors are at rest. All checks are done before anything is returned. Raises a SessionError."""
    record = read_session(path, expected(model))
    check_contents(path, record)
    document = record.document
    memories: dict[int, MemoryState] = {}

    def cursor(m: Moment) -> Cursor:
        if id(m.bank) not in memories:
            memories[id(m.bank)] = model.backend.from_host(m.bank, m.chunks)
        notes = m.notes
        return Cursor(memories[id(m.bank)], None, (), m.tokens, None, notes["turn"], notes["seen"], notes["draws"], notes["turns"])

    return Kept(
        document["system"],
        Sampling(**document["sampling"]),
        record.meta.seed,
        document["overlap"],
        cursor(record.now),
        [cursor(s) for s in record.snapshots],
        [{"role": m["role"], "content": m["content"]} for m in document["transcript"]],
        document["forgotten_turns"],
        record.meta.created,
    )


def unusable(path: Path, error: PromptError) -> SessionValueError:
    """The error of a file whose parts are right one by one and do not fit together."""
    return SessionValueError(f"{path}: {plain(error)}: {DAMAGED}")
