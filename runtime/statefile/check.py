"""The checks on a session file, in one place for all backends; done before anything is given out.

Knows what a right file looks like (its text is in text.py); opens none. Reading and writing use the same checks,
so what was saved can be opened again. Axes: l banks, n rows, d width, t tokens, W positions of a window, v vocabulary.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np

from ...models.errors import TensorFileError
from ...models.layout import bare_fingerprint
from ...models.tensorfile import Header, TensorInfo, build_header, parse_header
from .record import (
    BANKS_MAX,
    COUNT_MAX,
    DOCUMENT_BYTES_MAX,
    FILE_BYTES_MAX,
    FORMAT,
    HEADER_BYTES_MAX,
    ID_MAX,
    READS,
    SEED_MAX,
    SNAPSHOTS_MAX,
    VERSION,
    WINDOW_MAX,
    Expected,
    Meta,
    SessionCorruptError,
    SessionFormatError,
    SessionModelError,
    SessionShapeError,
    SessionTokenizerError,
    SessionTooLargeError,
    SessionValueError,
    SessionVersionError,
)

ARRAYS = {
    "memory.bank": "F32",
    "chunk.tokens": "I32",
    "snapshots.banks": "F32",
    "snapshots.tokens": "I32",
    "session.json": "U8",
}
NAMES = ("model", "backend", "dtype")
HASHES = ("fingerprint", "tokenizer")
COUNTS = ("tokens_seen", "draws")
DATES = ("created", "updated")
KEYS = {"format", "version", "seed", "sha256", "header_sha256", *NAMES, *HASHES, *COUNTS, *DATES}
WRITTEN = {1: "chunks", 2: "written"}  # what a version calls, and counts, of what went into the memory

DAMAGED = "the file is damaged: restore a copy of it, or start fresh with `--new`"
FOREIGN = "give a session file that lm2 saved, or start fresh with `--new`"
UNSAVED = "it was not saved, the previous file is unchanged"

_SHA256 = re.compile(r"[0-9a-f]{64}")
_COUNT = re.compile(r"0|[1-9][0-9]{0,19}")
_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|\+00:00)", re.ASCII)
_SIZE_MAX = (1 << 16, 1, 1 << 24, 1 << 24)  # of a bank's axes l, 1, n, d


def plain(text: object, limit: int = 200) -> str:
    """Foreign text, fit for a one-line message: control characters as escapes, cut at `limit` characters."""
    s = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text)[: limit + 1])
    return s if len(s) <= limit else s[: limit - 3] + "..."


def check_head(path: Path, raw: bytes) -> Header:
    """The checked header of a session file, from its bytes without the length before them.

    Raises SessionFormatError (not a session file, or not laid out as one), SessionCorruptError (digest of the header)
    or SessionVersionError. In this order: format, digest, version, tensor entries, metadata keys, the canonical
    spelling of it all.
    """
    metadata = _metadata(path, raw)
    found = metadata.get("format")
    if found != FORMAT:
        is_what = f"its format is {plain(found)!r}, not {FORMAT!r}" if found else "it has no lm2-session metadata"
        raise SessionFormatError(f"{path} is not a session file ({is_what}): {FOREIGN}")
    said, computed = metadata.get("header_sha256", ""), header_digest(raw, metadata.get("header_sha256", ""))
    if said != computed:
        raise SessionCorruptError(f"{path}: header_sha256 is {plain(said, 20)!r}, its header's is {computed[:16]}: {DAMAGED}")
    version = metadata.get("version", "")
    if version not in map(str, READS):
        if _COUNT.fullmatch(version) and int(version) > VERSION:
            remedy = "made by a newer lm2: upgrade with `pip install -U lm2`, or start fresh with `--new`"
        else:
            remedy = FOREIGN
        raise SessionVersionError(f"{path} has session version {plain(version)!r}, this lm2 reads {' and '.join(map(str, READS))}: {remedy}")
    try:
        header = parse_header(path, raw)
        if set(header.tensors) == set(ARRAYS):
            plan = [(name, header.tensors[name].dtype, header.tensors[name].shape) for name in ARRAYS]
            canonical = build_header(plan, header.metadata)[8:]
    except (TensorFileError, UnicodeEncodeError) as error:
        problem = plain(str(error).removeprefix(f"{path}: "))
        raise SessionFormatError(f"{path}: {problem}: {DAMAGED}") from None
    _same_names(path, "array", set(header.tensors), set(ARRAYS))
    for name, dtype in ARRAYS.items():
        if header.tensors[name].dtype != dtype:
            have = header.tensors[name].dtype
            raise SessionFormatError(f"{path}: {name} has dtype {have}, a session file has {dtype} there: {DAMAGED}")
    _same_names(path, "metadata key", set(metadata), KEYS | {WRITTEN[int(version)]})
    if canonical != raw:
        raise SessionFormatError(f"{path}: its header is not spelled as lm2 spells it (order or spaces): {DAMAGED}")
    return header


def header_digest(raw: bytes, own: str) -> str:
    """sha256 of a header without the spaces at its end and without its own `"header_sha256":"...",` entry."""
    entry = b'"header_sha256":"' + own.encode("utf-8", "replace") + b'",'
    return hashlib.sha256(raw.rstrip(b" ").replace(entry, b"", 1)).hexdigest()


def parse_meta(path: Path, metadata: Mapping[str, str]) -> tuple[Meta, int]:
    """Meta and what the memory holds (tokens; version 1: chunks), from the header's strings. Raises SessionValueError naming the key and its value."""
    numbers: dict[str, int] = {}
    what_is_in_it = WRITTEN[int(metadata["version"])]
    for key in (*COUNTS, "seed", what_is_in_it):
        if not _COUNT.fullmatch(metadata[key]):
            what = f"{path}: {key} {plain(metadata[key])!r} must be a whole number, 0 or more"
            raise SessionValueError(f"{what}: {DAMAGED}")
        numbers[key] = int(metadata[key])
    written = numbers.pop(what_is_in_it)
    meta = Meta(**{k: metadata[k] for k in (*NAMES, *HASHES, *DATES)}, **numbers)  # type: ignore[arg-type]
    check_meta(f"{path}: ", meta, DAMAGED)
    check_count(f"{path}: {what_is_in_it}", written, DAMAGED)
    return meta, written


def check_window(where: str, tokens: int, carried: object, folds: object, remedy: str) -> None:
    """Raise SessionValueError unless `carried` of `tokens` and ascending `folds` after them can be a window's."""
    check_count(f"{where}: carried", carried, remedy, tokens)
    assert isinstance(carried, int)
    if not isinstance(folds, (list, tuple)) or len(folds) > WINDOW_MAX:
        raise SessionValueError(f"{where}: folds {plain(folds, 60)} must be a list of whole numbers: {remedy}")
    last = carried
    for fold in folds:
        if type(fold) is not int or not last < fold <= tokens:
            what = f"{where}: folds {plain(list(folds), 60)} must ascend from above {carried} (carried) to at most {tokens} (tokens)"
            raise SessionValueError(f"{what}: {remedy}")
        last = fold


def check_meta(where: str, meta: Meta, remedy: str) -> None:
    """Raise SessionValueError (`where` first, `remedy` last) for a field of the wrong kind or range."""
    for key in COUNTS:
        check_count(where + key, getattr(meta, key), remedy)
    check_count(f"{where}seed", meta.seed, remedy, SEED_MAX)
    for key in (*NAMES, *HASHES, *DATES):
        text = getattr(meta, key)
        if not isinstance(text, str) or len(text) > 256 or not text.isprintable():
            raise SessionValueError(f"{where}{key} {plain(text)!r} must be printable text of at most 256 characters: {remedy}")
    for key in HASHES:
        if not _SHA256.fullmatch(getattr(meta, key)):
            what = f"{where}{key} {plain(getattr(meta, key))!r} must be a sha256 (64 lowercase hex digits)"
            raise SessionValueError(f"{what}: {remedy}")
    for key in DATES:
        if not _is_date(getattr(meta, key)):
            what = f"{where}{key} {plain(getattr(meta, key))!r} must be a date like 2025-01-31T12:00:00Z"
            raise SessionValueError(f"{what}: {remedy}")


def check_count(where: str, n: object, remedy: str, largest: int = COUNT_MAX) -> None:
    """Raise SessionValueError unless `n` is an int from 0 to `largest`."""
    if type(n) is not int or not 0 <= n <= largest:
        raise SessionValueError(f"{where} {plain(n)} must be a whole number from 0 to {largest}: {remedy}")


def check_model(path: Path, meta: Meta, expected: Expected) -> None:
    """Raise SessionModelError or SessionTokenizerError when the file was saved with something else than `expected`."""
    if meta.fingerprint != expected.fingerprint:
        if bare_fingerprint(meta.fingerprint) == expected.fingerprint:
            raise SessionModelError(f"{path} was saved with the memory of {plain(meta.model)}: leave --no-memory out, or start fresh with `--new`")
        if bare_fingerprint(expected.fingerprint) == meta.fingerprint:
            raise SessionModelError(f"{path} was saved without a memory: go on with --no-memory, or start fresh with `--new`")
        raise SessionModelError(
            f"{path} was saved with model {plain(meta.model)} (fingerprint {meta.fingerprint[:12]}), this is model "
            f"{plain(expected.model)} (fingerprint {plain(expected.fingerprint)[:12]}), or the same with another memory: open it with the model "
            "it was saved with, or start fresh with `--new`"
        )
    if meta.tokenizer != expected.tokenizer:
        raise SessionTokenizerError(
            f"{path} was saved with tokenizer {meta.tokenizer[:12]}, this model has "
            f"{plain(expected.tokenizer)[:12]}: put back its tokenizer.json, or start fresh with `--new`"
        )


def tokens_max(expected: Expected | None, version: int) -> int:
    """The most tokens a moment can have: a window's, in version 1 a chunk's."""
    if expected is None:
        return WINDOW_MAX
    return expected.window if version > 1 else expected.chunk


def bytes_max(expected: Expected | None) -> int:
    """The most bytes a session file can have: every part of it at its own limit."""
    if expected is None:
        return FILE_BYTES_MAX
    banks = (1 + BANKS_MAX) * 4 * math.prod(expected.bank_shape)
    return 8 + HEADER_BYTES_MAX + banks + (1 + SNAPSHOTS_MAX) * 4 * expected.window + DOCUMENT_BYTES_MAX


def check_arrays(path: Path, tensors: Mapping[str, TensorInfo], expected: Expected | None, version: int) -> None:
    """Raise SessionShapeError or SessionTooLargeError for arrays of a wrong shape, before a byte of them is read."""
    shapes = {name: list(tensors[name].shape) for name in ARRAYS}
    bank, banks = shapes["memory.bank"], shapes["snapshots.banks"]
    check_bank_shape(f"{path}: memory.bank", bank, DAMAGED)
    if expected is not None and tuple(bank) != tuple(expected.bank_shape):
        want = list(expected.bank_shape)
        raise SessionShapeError(f"{path}: memory.bank is {bank}, the model calls for {want}: {DAMAGED}")
    if len(banks) != 5 or banks[1:] != bank or banks[0] > BANKS_MAX:
        axes = ", ".join(str(n) for n in bank)
        raise SessionShapeError(f"{path}: snapshots.banks is {plain(banks)}, not [0 to {BANKS_MAX}, {axes}]: {DAMAGED}")
    window = tokens_max(expected, version)
    for name, most in (("chunk.tokens", window), ("snapshots.tokens", SNAPSHOTS_MAX * window)):
        if expected is not None and name == "chunk.tokens" and len(shapes[name]) == 1 and most < shapes[name][0] <= WINDOW_MAX:
            raise SessionShapeError(f"{path}: chunk.tokens is {shapes[name]}, a window of more than {positions(most)}")
        if len(shapes[name]) != 1 or shapes[name][0] > most:
            raise SessionShapeError(f"{path}: {name} is {plain(shapes[name])}, not [0 to {most}]: {DAMAGED}")
    body = shapes["session.json"]
    if len(body) != 1:
        raise SessionShapeError(f"{path}: session.json is {plain(body)}, not one row of bytes: {DAMAGED}")
    if body[0] > DOCUMENT_BYTES_MAX:
        raise SessionTooLargeError(f"{path}: session.json has {body[0]} bytes, at most {DOCUMENT_BYTES_MAX} are allowed: {FOREIGN}")


def positions(most: int) -> str:
    """The end of a message about a window that a model of `most` positions cannot have."""
    return f"this model's {most} positions (max_position_embeddings in its config.json): put back what it was saved with, or start fresh with `--new`"


def check_bank_shape(where: str, shape: Sequence[int], remedy: str) -> None:
    """Raise SessionShapeError unless `shape` is (l, 1, n, d) with sizes that can be meant."""
    low = (0, 1, 1, 1)
    if len(shape) != 4 or not all(a <= x <= b for a, x, b in zip(low, shape, _SIZE_MAX, strict=True)):
        raise SessionShapeError(f"{where} is {plain(list(shape))}, not [banks, 1, rows, width]: {remedy}")


def check_finite(where: str, bank: np.ndarray, remedy: str) -> None:
    """Raise SessionValueError when a bank holds NaN or infinity, saying how many and where the first is."""
    good = np.isfinite(bank)
    if not good.all():
        first = [int(i) for i in np.unravel_index(int(np.argmin(good)), bank.shape)]
        what = f"{where} has {int((~good).sum())} of {bank.size} values that are NaN or infinite, first at {first}"
        raise SessionValueError(f"{what}: {remedy}")


def check_tokens(where: str, tokens: np.ndarray, vocab_size: int | None, remedy: str) -> None:
    """Raise SessionValueError for an id below 0 or not below the vocabulary's size."""
    largest = ID_MAX if vocab_size is None else vocab_size - 1
    if tokens.size and (int(tokens.min()) < 0 or int(tokens.max()) > largest):
        bad = next(int(i) for i in tokens if not 0 <= int(i) <= largest)
        raise SessionValueError(f"{where} has token id {bad}, ids go from 0 to {largest}: {remedy}")


def _metadata(path: Path, raw: bytes) -> dict[str, str]:
    try:
        entries = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise SessionFormatError(f"{path}: its header is not valid JSON ({plain(error)}): {DAMAGED}") from None
    metadata = entries.get("__metadata__", {}) if isinstance(entries, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise SessionFormatError(f"{path}: its header does not map names to entries: {DAMAGED}")
    return metadata


def _same_names(path: Path, what: str, have: set[str], want: set[str]) -> None:
    if have == want:
        return
    missing, extra = sorted(want - have), sorted(have - want)
    problem = f"{what} {missing[0]} is missing" if missing else f"{what} {plain(extra[0])!r} does not belong there"
    raise SessionFormatError(f"{path}: {problem}: {DAMAGED}")


def _is_date(text: str) -> bool:
    try:
        return bool(_DATE.fullmatch(text)) and datetime.fromisoformat(text.replace("Z", "+00:00")) is not None
    except ValueError:
        return False
