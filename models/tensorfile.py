"""The safetensors container, read strictly and written as a stream.

Knows the format (8-byte length, JSON header, tensor bytes) and nothing of models or sessions. Stricter than the library readers: no holes,
no overlaps, no trailing bytes, sizes that match shape and dtype, a cap on the header. Reading maps nothing and loads one tensor at a time.
"""

import hashlib
import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .errors import TensorDtypeError, TensorFileError

ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
}
# Dtypes of the format that nothing here computes with, in bits: read_header knows their sizes, so that what is wrong with such a file is its dtype.
OTHER_BITS = {
    "C64": 64, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
NUMPY = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip
HEADER_BYTES_MAX = 100_000_000  # as the safetensors library has it
COPY_BYTES = 8 << 20


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file: name, safetensors dtype, shape, and where its bytes lie (offsets from the start of the file)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin


@dataclass(frozen=True)
class Header:
    """A checked header: tensors in file order, string metadata, the raw header bytes and the file's exact size."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    raw: bytes
    file_bytes: int


def read_header(path: Path, header_max: int = HEADER_BYTES_MAX) -> Header:
    """Read and check the header of a safetensors file. Any dtype of the format is taken: whoever reads values says which it can use.

    Raises TensorFileError, naming the file and both values, for: a missing or unreadable file, a header that is too long, cut, not JSON,
    a repeated or unknown entry, a dtype outside the format, a size that contradicts its shape, holes, overlaps, bytes missing or left over.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as f:
            first = f.read(8)
            if len(first) < 8:
                raise TensorFileError(f"{path} has {size} bytes: too short to be a safetensors file")
            (length,) = struct.unpack("<Q", first)
            if length > header_max:
                raise TensorFileError(f"{path}: header of {length} bytes is longer than the {header_max} allowed")
            if 8 + length > size:
                raise TensorFileError(f"{path}: header of {length} bytes does not fit in a file of {size} bytes (cut off?)")
            raw = f.read(length)
    except FileNotFoundError:
        raise TensorFileError(f"{path} does not exist") from None
    except OSError as error:
        raise TensorFileError(f"cannot read {path}: {error.strerror or error}") from None
    header = parse_header(path, raw, foreign=True)
    if header.file_bytes != size:
        what = "the file is cut off" if size < header.file_bytes else "bytes are left over"
        raise TensorFileError(f"{path}: the header describes {header.file_bytes} bytes, the file has {size} ({what})")
    return header


def parse_header(path: Path, raw: bytes, foreign: bool = False) -> Header:
    """Check header bytes (without the length before them). `path` only names the file in errors. foreign: written by whatever program, so
    null metadata, further fields of an entry and dtypes that are not computed with are taken, as the safetensors library takes them.

    The result's `file_bytes` is what the header describes; comparing it with the file is the caller's part. Raises TensorFileError.
    """
    length = len(raw)
    try:
        entries = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_repeats)
    except (ValueError, RecursionError) as error:
        raise TensorFileError(f"{path}: header is not valid JSON ({error})") from None
    if not isinstance(entries, dict):
        raise TensorFileError(f"{path}: header must be a JSON object")
    metadata = entries.pop("__metadata__", {})
    if metadata is None and foreign:
        metadata = {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise TensorFileError(f"{path}: __metadata__ must map names to strings")
    data = 8 + length
    tensors = sorted((_entry(path, name, entry, data, foreign) for name, entry in entries.items()), key=lambda t: (t.begin, t.end))
    at = data
    for t in tensors:
        if t.begin != at:
            what = "leaves a hole before" if t.begin > at else "overlaps what comes before"
            raise TensorFileError(f"{path}: tensor {t.name} starts at byte {t.begin} and {what} it (expected {at})")
        at = t.end
    return Header({t.name: t for t in tensors}, metadata, raw, at)


def read_tensor(f: BinaryIO, info: TensorInfo) -> np.ndarray:
    """One tensor from an open file as a NumPy array of its own dtype; BF16 comes as uint16 bit patterns (see `to_float32`)."""
    return _read(f, info, info.begin, info.shape)


def read_rows(f: BinaryIO, info: TensorInfo, start: int, stop: int) -> np.ndarray:
    """Rows `start` to `stop` (which is not among them) of a tensor with at least one axis, as `read_tensor` reads it."""
    row = math.prod(info.shape[1:]) * ITEM_BYTES[info.dtype]
    return _read(f, info, info.begin + start * row, (stop - start, *info.shape[1:]))


def _read(f: BinaryIO, info: TensorInfo, begin: int, shape: tuple[int, ...]) -> np.ndarray:
    f.seek(begin)
    kind = "<u2" if info.dtype == "BF16" else NUMPY[info.dtype]
    out = np.empty(shape, dtype=kind)
    view = memoryview(out.reshape(-1).view(np.uint8)) if out.size else memoryview(b"")
    got = f.readinto(view) if out.size else 0  # type: ignore[attr-defined]
    if got != out.nbytes:
        raise TensorFileError(f"{getattr(f, 'name', 'file')}: tensor {info.name} has {got} of {out.nbytes} bytes (cut off while reading)")
    return out


def to_float32(a: np.ndarray, dtype: str) -> np.ndarray:
    """Values of a tensor read by `read_tensor`, in float32. Exact for BF16, F16 and F32."""
    if dtype == "BF16":
        bits = a.astype(np.uint32)
        bits <<= 16  # in place: one array of the result's size, not two
        return bits.view(np.float32)
    return a.astype(np.float32, copy=False)


def from_float32(a: np.ndarray, dtype: str) -> np.ndarray:
    """float32 values as the bytes of `dtype` (F64, F32, F16 or BF16, rounded to nearest even; NaN stays NaN)."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(a, dtype=np.float32).view(np.uint32)
        rounded = ((bits + (0x7FFF + ((bits >> 16) & 1)).astype(np.uint32)) >> 16).astype(np.uint16)
        return np.where(np.isnan(a), np.uint16(0x7FC0), rounded)
    return a.astype(NUMPY[dtype], copy=False)


def build_header(plan: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """Length and JSON header for tensors (name, dtype, shape) laid out in the given order; padded with spaces to 8 bytes."""
    entries: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    at = 0
    for name, dtype, shape in plan:
        nbytes = math.prod(shape) * ITEM_BYTES[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + nbytes]}
        at += nbytes
    raw = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw


class TensorWriter:
    """Writes a safetensors file whose shapes are known first and whose values come one tensor at a time.

    `write` must be called in the order of the plan; each tensor may come in pieces. `digests` then holds the sha256 of each tensor's bytes.
    """

    def __init__(self, f: BinaryIO, plan: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]):
        self._f = f
        self._plan = list(plan)
        self._next = 0
        self.digests: dict[str, str] = {}
        f.write(build_header(self._plan, metadata))

    def write(self, name: str, pieces: Iterable[np.ndarray]) -> None:
        """Append the next tensor. Raises ValueError when it is out of order or its bytes contradict the plan."""
        expected, dtype, shape = self._plan[self._next]
        if name != expected:
            raise ValueError(f"tensor {name} written where the plan has {expected}")
        digest, count = hashlib.sha256(), 0
        for piece in pieces:
            block = np.ascontiguousarray(piece)
            view = memoryview(block.reshape(-1).view(np.uint8)) if block.size else memoryview(b"")
            digest.update(view)
            self._f.write(view)
            count += view.nbytes
        if count != math.prod(shape) * ITEM_BYTES[dtype]:
            raise ValueError(f"tensor {name} has {count} bytes, the plan says {math.prod(shape) * ITEM_BYTES[dtype]}")
        self.digests[name] = digest.hexdigest()
        self._next += 1

    def finish(self) -> None:
        """Raise ValueError unless every planned tensor was written."""
        if self._next != len(self._plan):
            raise ValueError(f"tensor {self._plan[self._next][0]} was planned and never written")


def hash_tensor(f: BinaryIO, info: TensorInfo, progress: Callable[[int], None] | None = None) -> str:
    """sha256 of one tensor's bytes, read in blocks. `progress` is told the bytes of each block."""
    digest = hashlib.sha256()
    f.seek(info.begin)
    left = info.nbytes
    while left:
        block = f.read(min(left, COPY_BYTES))
        if not block:
            raise TensorFileError(f"{getattr(f, 'name', 'file')}: tensor {info.name} is cut off")
        digest.update(block)
        left -= len(block)
        if progress:
            progress(len(block))
    return digest.hexdigest()


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for k, v in pairs:
        if k in out:
            raise ValueError(f"entry {k!r} appears twice")
        for text in (k, v) if isinstance(v, str) else (k,):
            text.encode("utf-8")  # JSON's escapes can spell half of a surrogate pair, which is no text
        out[k] = v
    return out


def _entry(path: Path, name: str, entry: Any, data: int, foreign: bool) -> TensorInfo:
    where = f"{path}: tensor {name}"
    fields = {"dtype", "shape", "data_offsets"}
    if not isinstance(entry, dict) or not (fields <= set(entry) if foreign else fields == set(entry)):
        raise TensorFileError(f"{where}: its header entry must have dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    bits = {k: 8 * n for k, n in ITEM_BYTES.items()} | (OTHER_BITS if foreign else {})
    if not isinstance(dtype, str) or dtype not in bits:
        raise TensorDtypeError(f"{where}: dtype {dtype!r} must be one of {', '.join(bits)}")
    if not isinstance(shape, list) or len(shape) > 8 or not all(type(n) is int and 0 <= n < 1 << 48 for n in shape):
        raise TensorFileError(f"{where}: shape {shape!r} must be a short list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int and n >= 0 for n in offsets):
        raise TensorFileError(f"{where}: data_offsets {offsets!r} must be two positions")
    nbytes, rest = divmod(math.prod(shape) * bits[dtype], 8)
    if rest or offsets[1] - offsets[0] != nbytes:
        raise TensorFileError(f"{where}: {dtype} {shape} needs {nbytes} bytes, its offsets hold {offsets[1] - offsets[0]}")
    return TensorInfo(name, dtype, tuple(shape), data + offsets[0], data + offsets[1])
