"""What a session file holds, the limits it keeps to, and the ways it can be wrong.

Knows names, sizes and errors; reads and writes nothing. Axes: l banks, n rows, d width, t tokens, W positions of a
window, T tokens of a chunk, v vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...models.errors import LM2Error

FORMAT = "lm2-session"
VERSION = 2
READS = (1, 2)
SNAPSHOTS_MAX = 16
BANKS_MAX = 4  # distinct banks of snapshots, besides the current one
HEADER_BYTES_MAX = 1 << 20
DOCUMENT_BYTES_MAX = 8 << 20  # all of session.json: document, notes and the table of snapshots
FILE_BYTES_MAX = 8 << 30  # where no model says how large a session can be
JSON_DEPTH_MAX = 32
WINDOW_MAX = 1 << 20
COUNT_MAX = (1 << 63) - 1
SEED_MAX = (1 << 64) - 1
ID_MAX = (1 << 31) - 1


@dataclass(frozen=True, eq=False)
class Moment:
    """A point in a conversation from which it can go on.

    bank: (l, 1, n, d) float32, finite; the memory at the START of the window. Shared between moments: treat it as
    read-only. written: tokens in that bank, ever. tokens: ids in the window, at most W; the first `carried` of them are
    in the bank already. folds: lengths at which the window is folded, ascending. notes: a small JSON object of the
    session layer.
    """

    bank: np.ndarray
    written: int
    tokens: tuple[int, ...]
    notes: dict[str, Any]
    carried: int = 0
    folds: tuple[int, ...] = ()


@dataclass(frozen=True)
class Meta:
    """Who saved a session and how far it had come.

    fingerprint, tokenizer: sha256, 64 hex digits. model, backend, dtype: names. tokens_seen: tokens fed since the
    start. seed, draws: the sampler's seed and how many random numbers it drew. created, updated: ISO 8601, UTC
    (`2025-01-31T12:00:00Z`).
    """

    fingerprint: str
    model: str
    tokenizer: str
    backend: str
    dtype: str
    tokens_seen: int
    seed: int
    draws: int
    created: str
    updated: str


@dataclass(frozen=True)
class Record:
    """All that a session file holds.

    snapshots: earlier turn ends, oldest first, at most SNAPSHOTS_MAX, with at most BANKS_MAX distinct banks besides
    `now`'s. Moments that hold the same array object share it in the file, and after reading again hold one object.
    document: a JSON object. version: of the file it was read from; without a model, moments of version 1 count chunks
    where later ones count tokens.
    """

    now: Moment
    snapshots: tuple[Moment, ...]
    document: dict[str, Any]
    meta: Meta
    version: int = VERSION


@dataclass(frozen=True)
class Expected:
    """The model a file is opened for. bank_shape: (l, 1, n, d). chunk: T. vocab_size: v. model: its name. positions: W at most (0: a chunk)."""

    fingerprint: str
    model: str
    tokenizer: str
    bank_shape: tuple[int, int, int, int]
    chunk: int
    vocab_size: int
    positions: int = 0

    @property
    def window(self) -> int:
        """The most tokens a window of this model can have."""
        return max(self.chunk, self.positions)


class SessionError(LM2Error):
    """Base of everything that can be wrong with a session file."""


class SessionMissingError(SessionError):
    """There is no file at the path."""


class SessionReadError(SessionError):
    """The file is there and cannot be read (permission, input/output error)."""


class SessionTruncatedError(SessionError):
    """The file is shorter than it says: it was cut off."""


class SessionTooLargeError(SessionError):
    """The file, its header or its text is larger than allowed."""


class SessionFormatError(SessionError):
    """The file is not a session file, or breaks the layout of one."""


class SessionVersionError(SessionError):
    """The file has a version of the format that this lm2 does not read."""


class SessionCorruptError(SessionError):
    """The file's bytes do not match their digest."""


class SessionModelError(SessionError):
    """The file belongs to another model."""


class SessionTokenizerError(SessionError):
    """The file belongs to another tokenizer."""


class SessionShapeError(SessionError):
    """An array has another shape than the model calls for."""


class SessionValueError(SessionError, ValueError):
    """A value is out of range: NaN or infinity, a token id, a count, a date, JSON outside its limits."""


class SessionLockedError(SessionError):
    """Another process, or another session of this process, has the file open."""
