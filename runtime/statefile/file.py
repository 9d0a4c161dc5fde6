"""Session files (`.lm2s`): write a conversation's memory and place, and read them back, checked.

Knows the container and the order of reading; what is right is in check.py and text.py, what a file holds in
record.py, and the layout for other languages in docs/session-file.md. Knows no backend: banks are NumPy. Axes: l
banks, n rows, d width, t tokens.
"""

import hashlib
import math
import os
import stat
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ...models.atomic import write_file
from ...models.errors import TensorFileError
from ...models.tensorfile import TensorInfo, build_header, read_tensor
from .check import (
    ARRAYS,
    DAMAGED,
    FOREIGN,
    UNSAVED,
    WRITTEN,
    bytes_max,
    check_arrays,
    check_bank_shape,
    check_count,
    check_finite,
    check_head,
    check_meta,
    check_model,
    check_tokens,
    check_window,
    header_digest,
    parse_meta,
    plain,
    tokens_max,
)
from .record import (
    BANKS_MAX,
    FILE_BYTES_MAX,
    FORMAT,
    HEADER_BYTES_MAX,
    SNAPSHOTS_MAX,
    VERSION,
    WINDOW_MAX,
    Expected,
    Meta,
    Moment,
    Record,
    SessionCorruptError,
    SessionFormatError,
    SessionMissingError,
    SessionReadError,
    SessionShapeError,
    SessionTooLargeError,
    SessionTruncatedError,
    SessionValueError,
    SessionVersionError,
)
from .text import build_json, check_table, parse_json

__all__ = ["Expected", "Meta", "Moment", "Record", "read_session", "stamp", "write_session"]


def write_session(path: Path, record: Record, expected: Expected | None = None) -> int:
    """Write `record` to `path`, atomically, and return the file's size in bytes. A symbolic link is followed, a file's
    mode is kept.

    Raises SessionValueError, SessionShapeError, SessionModelError, SessionTokenizerError or SessionTooLargeError for a
    record that could not be read back (by `expected`, if given: ids, lengths and shape are then held against the model)
    and WriteError when the file system refuses. The previous file is then unchanged.
    """
    path = Path(path)
    banks, table = _check_record(path, record, expected)
    now = record.now
    window = {"carried": now.carried, "folds": list(now.folds)}
    text = build_json(f"{path}: ", record.document, now.notes, window, table, UNSAVED)
    ids = [i for s in record.snapshots for i in s.tokens]
    bank = np.ascontiguousarray(now.bank, dtype="<f4")  # (l, 1, n, d)
    contents: dict[str, tuple[tuple[int, ...], list[np.ndarray]]] = {
        "memory.bank": (bank.shape, [bank]),
        "chunk.tokens": ((len(now.tokens),), [np.array(now.tokens, dtype="<i4")]),
        "snapshots.banks": ((len(banks), *bank.shape), [np.ascontiguousarray(b, dtype="<f4") for b in banks]),
        "snapshots.tokens": ((len(ids),), [np.array(ids, dtype="<i4")]),
        "session.json": ((len(text),), [np.frombuffer(text, dtype=np.uint8)]),
    }
    blocks = [_bytes(piece) for name in ARRAYS for piece in contents[name][1]]
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    head = _head([(n, dtype, contents[n][0]) for n, dtype in ARRAYS.items()], record.meta, now.written, digest.hexdigest())
    target = Path(os.path.realpath(path))

    def fill(f: BinaryIO) -> None:
        if target.exists() and hasattr(os, "fchmod"):
            os.fchmod(f.fileno(), stat.S_IMODE(target.stat().st_mode))
        f.write(head)
        for block in blocks:
            f.write(block)

    write_file(target, fill)
    return len(head) + sum(block.nbytes for block in blocks)


def read_session(path: Path, expected: Expected | None) -> Record:
    """Read and check a session file for the model `expected`; with None everything is checked but the match with a
    model.

    Nothing is returned unless every check passed. Raises a subclass of SessionError, one for each way a file can be
    wrong; its message names the file, both values and the remedy.
    """
    path = Path(path)
    try:
        _check_kind(path)
        with open(path, "rb") as f:
            return _read(path, f, os.fstat(f.fileno()).st_size, expected)
    except FileNotFoundError:
        raise SessionMissingError(f"{path} does not exist: check the path, or start fresh with `--new`") from None
    except OSError as error:
        what = f"cannot read {path}: {error.strerror or error}"
        raise SessionReadError(f"{what}: check the path and its permissions, or start fresh with `--new`") from None
    except TensorFileError as error:
        problem = plain(str(error).removeprefix(f"{path}: "))
        raise SessionTruncatedError(f"{path}: {problem}: {DAMAGED}") from None
    except MemoryError:
        raise SessionTooLargeError(f"{path} does not fit in this machine's memory: close other programs and try again") from None


def stamp(path: Path) -> str | None:
    """The sha256 of a session file's header, which has the digests of all that is in it: two files with one stamp hold the same. Reads the header alone, and
    through an open of its own, so that a network file system asks again. None where there is no file, or none with a header."""
    try:
        with open(path, "rb") as f:
            first = f.read(8)
            (length,) = struct.unpack("<Q", first)
            if length > HEADER_BYTES_MAX:
                return None
            return hashlib.sha256(first + f.read(length)).hexdigest()
    except (OSError, struct.error):
        return None


def _read(path: Path, f: BinaryIO, size: int, expected: Expected | None) -> Record:
    most = max(FILE_BYTES_MAX, bytes_max(expected))
    if size > most:
        raise SessionTooLargeError(f"{path} has {size} bytes, a session file has at most {most}: {FOREIGN}")
    first = f.read(8)
    if len(first) < 8:
        raise SessionTruncatedError(f"{path} has {size} bytes, a session file has more than 8: {DAMAGED}")
    (length,) = struct.unpack("<Q", first)
    if length > HEADER_BYTES_MAX:
        what = f"{path} claims a header of {length} bytes, at most {HEADER_BYTES_MAX} are allowed"
        raise SessionTooLargeError(f"{what} (not a session file, or damaged): {FOREIGN}")
    raw = f.read(length)
    if len(raw) < length:
        raise SessionTruncatedError(f"{path} has {size} bytes, its header alone has {8 + length}: {DAMAGED}")
    header = check_head(path, raw)
    if size < header.file_bytes:
        raise SessionTruncatedError(f"{path} has {size} bytes, its header describes {header.file_bytes} (cut off): {DAMAGED}")
    if size > header.file_bytes:
        raise SessionFormatError(f"{path} has {size} bytes, its header describes {header.file_bytes} (bytes left over): {DAMAGED}")
    version = int(header.metadata["version"])
    meta, written = parse_meta(path, header.metadata)
    if expected is not None:
        check_model(path, meta, expected)
    if size > bytes_max(expected):
        raise SessionTooLargeError(f"{path} has {size} bytes, this model's sessions have at most {bytes_max(expected)}: {DAMAGED}")
    check_arrays(path, header.tensors, expected, version)

    digest = hashlib.sha256()
    arrays: dict[str, list[np.ndarray]] = {}
    for name in ARRAYS:
        arrays[name] = [read_tensor(f, part) for part in _parts(header.tensors[name])]
        for piece in arrays[name]:
            digest.update(_bytes(piece))
    if digest.hexdigest() != header.metadata["sha256"]:
        said, computed = plain(header.metadata["sha256"], 64)[:16], digest.hexdigest()[:16]
        raise SessionCorruptError(f"{path}: sha256 is {said}, its arrays' is {computed}: {DAMAGED}")

    vocab = None if expected is None else expected.vocab_size
    unit = 1 if version > 1 or expected is None else expected.chunk  # version 1 counts chunks
    [bank], [tokens], banks, [ids] = (arrays[n] for n in ARRAYS if n != "session.json")
    check_finite(f"{path}: memory.bank", bank, DAMAGED)
    for i, b in enumerate(banks):
        check_finite(f"{path}: snapshots.banks[{i}]", b, DAMAGED)
    check_tokens(f"{path}: chunk.tokens", tokens, vocab, DAMAGED)
    check_tokens(f"{path}: snapshots.tokens", ids, vocab, DAMAGED)
    content = parse_json(path, arrays["session.json"][0].tobytes(), version)
    window = content["window"]
    check_window(f"{path}: session.json: window", len(tokens), window["carried"], window["folds"], DAMAGED)
    check_table(path, content["snapshots"], len(banks), len(ids), tokens_max(expected, version), version)
    for where, count in (("", written), *((f": snapshot {i}", row[WRITTEN[version]]) for i, row in enumerate(content["snapshots"]))):
        check_count(f"{path}{where}: tokens in the memory", count * unit, DAMAGED)
    return Record(
        now=Moment(bank, written * unit, tuple(tokens.tolist()), content["notes"], window["carried"], tuple(window["folds"])),
        snapshots=_snapshots(content["snapshots"], bank, banks, ids.tolist(), WRITTEN[version], unit),
        document=content["document"],
        meta=meta,
        version=version,
    )


def _snapshots(
    table: list[dict[str, Any]], bank: np.ndarray, banks: list[np.ndarray], ids: list[int], written: str, unit: int
) -> tuple[Moment, ...]:
    out, at = [], 0
    for row in table:
        tokens = tuple(ids[at : at + row["tokens"]])
        held = bank if row["bank"] < 0 else banks[row["bank"]]
        out.append(Moment(held, row[written] * unit, tokens, row["notes"], row.get("carried", 0), tuple(row.get("folds", ()))))
        at += row["tokens"]
    return tuple(out)


def _check_record(path: Path, record: Record, expected: Expected | None) -> tuple[list[np.ndarray], list[dict[str, Any]]]:
    """Refuse a record that could not be read back. Returns the banks to store, in order of first use, and the table."""
    if record.version != VERSION and expected is None:
        what = f"{path}: a record of version {record.version} counts chunks and is not written as version {VERSION}"
        raise SessionVersionError(f"{what} without its model: {UNSAVED}")
    check_meta(f"{path}: meta ", record.meta, UNSAVED)
    if len(record.snapshots) > SNAPSHOTS_MAX:
        have = len(record.snapshots)
        raise SessionTooLargeError(f"{path}: {have} snapshots, a session file has at most {SNAPSHOTS_MAX}: {UNSAVED}")
    shape = np.shape(record.now.bank)
    check_bank_shape(f"{path}: bank", shape, UNSAVED)
    if expected is not None:
        check_model(path, record.meta, expected)
        if shape != tuple(expected.bank_shape):
            want = list(expected.bank_shape)
            raise SessionShapeError(f"{path}: bank is {list(shape)}, the model calls for {want}: {UNSAVED}")
    banks: list[np.ndarray] = []
    table: list[dict[str, Any]] = []
    for name, moment in [("now", record.now), *((f"snapshot {i}", s) for i, s in enumerate(record.snapshots))]:
        where = f"{path}: {name}"
        if not isinstance(moment.bank, np.ndarray) or moment.bank.dtype != np.float32:
            kind = getattr(moment.bank, "dtype", type(moment.bank).__name__)
            raise SessionValueError(f"{where}: bank is {kind}, it must be a float32 array: {UNSAVED}")
        if moment.bank.shape != shape:
            raise SessionShapeError(f"{where}: bank is {list(moment.bank.shape)}, the current one is {list(shape)}: {UNSAVED}")
        check_count(f"{where}: written", moment.written, UNSAVED)
        _check_ids(where, moment.tokens, expected)
        check_window(where, len(moment.tokens), moment.carried, moment.folds, UNSAVED)
        stored = [record.now.bank, *banks]
        bank = next((i for i, b in enumerate(stored) if b is moment.bank), len(stored)) - 1
        if name == "now" or bank == len(banks):
            check_finite(f"{where}: bank", moment.bank, UNSAVED)
        if name == "now":
            continue
        if bank == len(banks):
            banks.append(moment.bank)
        row = {"bank": bank, "written": moment.written, "tokens": len(moment.tokens), "carried": moment.carried}
        table.append(row | {"folds": list(moment.folds), "notes": moment.notes})
    if len(banks) > BANKS_MAX:
        raise SessionTooLargeError(f"{path}: snapshots hold {len(banks)} other banks, a session file has at most {BANKS_MAX}: {UNSAVED}")
    return banks, table


def _check_ids(where: str, tokens: tuple[int, ...], expected: Expected | None) -> None:
    vocab, most = (None, WINDOW_MAX) if expected is None else (expected.vocab_size, expected.window)
    ids = np.array(tokens) if len(tokens) else np.zeros(0, dtype=np.int64)  # (t,)
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or len(ids) > most:
        kind = f"{list(ids.shape)} of {ids.dtype}"
        raise SessionValueError(f"{where}: tokens are {kind}, they must be at most {most} whole numbers: {UNSAVED}")
    check_tokens(f"{where}: tokens", ids, vocab, UNSAVED)


def _head(plan: list[tuple[str, str, tuple[int, ...]]], meta: Meta, written: int, sha256: str) -> bytes:
    strings = {"format": FORMAT, "version": str(VERSION), WRITTEN[VERSION]: str(written), "sha256": sha256}
    strings |= {key: str(value) for key, value in vars(meta).items()}
    own = header_digest(build_header(plan, strings)[8:], "")
    return build_header(plan, strings | {"header_sha256": own})


def _check_kind(path: Path) -> None:
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise SessionFormatError(f"{path} is {what}, not a session file: {FOREIGN}")


def _parts(info: TensorInfo) -> list[TensorInfo]:
    """snapshots.banks as one part per bank, so that a dropped snapshot frees its memory; any other array as it is."""
    if info.name != "snapshots.banks":
        return [info]
    step = math.prod(info.shape[1:]) * 4
    return [replace(info, shape=info.shape[1:], begin=info.begin + i * step, end=info.begin + (i + 1) * step) for i in range(info.shape[0])]


def _bytes(a: np.ndarray) -> memoryview:
    return a.reshape(-1).view(np.uint8).data if a.size else memoryview(b"")
