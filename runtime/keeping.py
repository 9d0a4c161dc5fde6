"""Between a session and its file: which part of a Session goes where in a Record, and back.

The unfinished chunk is kept as token ids and re-run when the session goes on: the file then opens on any backend.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .backend import MemoryState
from .cursor import Cursor
from .session import Session
from .statefile import Expected, Meta, Moment, Record, read_session, write_session

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
        bank = hosts.setdefault(id(at.memory), model.backend.to_host(at.memory)) if id(at.memory) not in hosts else hosts[id(at.memory)]
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
    written = write_session(path, Record(moment(session.at), tuple(moment(s) for s in session.snapshots), document, meta))
    session.created = meta.created
    return written


def restore_session(model: "Model", path: Path, notify: Callable[[str], None] | None = None) -> Session:
    """Open a session file on `model`. All checks are done before anything is assigned."""
    from .sampling import Sampling

    record = read_session(path, expected(model))
    document = record.document
    session = Session(model, document["system"], Sampling(**document["sampling"]), record.meta.seed, document["overlap"], notify)
    memories: dict[int, MemoryState] = {}

    def cursor(m: Moment) -> Cursor:
        if id(m.bank) not in memories:
            memories[id(m.bank)] = model.backend.from_host(m.bank, m.chunks)
        notes = m.notes
        return Cursor(memories[id(m.bank)], None, (), m.tokens, None, notes["turn"], notes["seen"], notes["draws"], notes["turns"])

    session.at = cursor(record.now)
    session.snapshots = [cursor(s) for s in record.snapshots]
    session.transcript = document["transcript"]
    session.forgotten_turns = document["forgotten_turns"]
    session.created = record.meta.created
    return session
