"""Between a session and its file: which part of a Session goes where in a Record, and back.

The unfinished chunk is kept as token ids and re-run when the session goes on: the file then opens on any backend. What every session
file must be is statefile.py's business; here it is checked that the parts meant for a Session are ones a Session can have.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..models.errors import PromptError
from .backend import MemoryState
from .cursor import Cursor
from .sampling import Sampling
from .session import Session
from .statecheck import DAMAGED, check_count, plain
from .statefile import Expected, Meta, Moment, Record, read_session, write_session
from .staterecord import SessionValueError

if TYPE_CHECKING:
    from .loading import Model


def expected(model: "Model") -> Expected:
    """What a session file must match to be opened on `model`."""
    sha = model.tokenizer.sha256 if model.tokenizer else "0" * 64
    return Expected(model.fingerprint, model.name, sha, model.config.bank_shape(), model.config.memory.chunk, model.config.vocab_size)


def save_session(session: Session, path: Path) -> int:
    """Write `session` to `path`; bytes written."""
    model = session.model
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
        "system": session.system,
        "transcript": session.transcript,
        "forgotten_turns": session.forgotten_turns,
        "overlap": session.feeder.overlap,
        "sampling": session.sampling.to_dict(),
    }
    meta = Meta(
        wanted.fingerprint, wanted.model, wanted.tokenizer, about.backend, about.dtype,
        session.at.seen, session.seed, session.at.draws, session.created or stamp, stamp,
    )  # fmt: skip
    record = Record(moment(session.at), tuple(moment(s) for s in session.snapshots), document, meta)
    written = write_session(path, record, wanted)
    session.created = meta.created
    return written


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


def restore_session(model: "Model", path: Path, notify: Callable[[str], None] | None = None) -> Session:
    """Open a session file on `model`. All checks are done before anything is assigned."""
    record = read_session(path, expected(model))
    check_contents(path, record)
    document = record.document
    try:
        session = Session(model, document["system"], Sampling(**document["sampling"]), record.meta.seed, document["overlap"], notify)
    except PromptError as error:
        raise SessionValueError(f"{path}: {plain(error)}: {DAMAGED}") from None
    memories: dict[int, MemoryState] = {}

    def cursor(m: Moment) -> Cursor:
        if id(m.bank) not in memories:
            memories[id(m.bank)] = model.backend.from_host(m.bank, m.chunks)
        notes = m.notes
        return Cursor(memories[id(m.bank)], None, (), m.tokens, None, notes["turn"], notes["seen"], notes["draws"], notes["turns"])

    session.at = cursor(record.now)
    session.snapshots = [cursor(s) for s in record.snapshots]
    session.transcript = [{"role": m["role"], "content": m["content"]} for m in document["transcript"]]
    session.forgotten_turns = document["forgotten_turns"]
    session.created = record.meta.created
    return session
