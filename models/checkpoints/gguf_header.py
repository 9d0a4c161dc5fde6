"""The GGUF container, read strictly: metadata, and where each tensor's bytes lie.

Knows the format (versions 2 and 3, little-endian) and nothing of models. Every length is checked against the file
before it is used, so
a damaged or hostile file ends in one ConvertError. Values stay on disk; only the header's pages are touched.
Source: the GGUF specification in ggml's docs; block sizes come from the `gguf` package.
"""

import math
import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConvertError

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
ENTRIES_MAX = 1 << 20
ARRAY_MAX = 1 << 24
REMEDY = "the file is damaged or cut off; download it again"


@dataclass(frozen=True)
class GGUFTensor:
    """One tensor: name, ggml type name, shape in row-major order, and its bytes' place in the file."""

    name: str
    kind: str
    shape: tuple[int, ...]
    begin: int
    nbytes: int


@dataclass(frozen=True)
class GGUFHeader:
    """Metadata by key (strings decoded, arrays as lists) and tensors by name."""

    metadata: dict[str, Any]
    tensors: dict[str, GGUFTensor]


class _Reader:
    def __init__(self, data: mmap.mmap, path: Path):
        self.data, self.path, self.at, self.size = data, path, 0, len(data)

    def fail(self, what: str) -> ConvertError:
        return ConvertError(f"{self.path}: {what} (byte {self.at} of {self.size}): {REMEDY}")

    def need(self, count: int) -> int:
        if count > self.size - self.at:
            raise self.fail(f"the header needs {count} more bytes")
        start, self.at = self.at, self.at + count
        return start

    def number(self, code: str) -> Any:
        return struct.unpack_from("<" + code, self.data, self.need(struct.calcsize("<" + code)))[0]

    def text(self) -> str:
        length = self.number("Q")
        start = self.need(length)
        try:
            return self.data[start : start + length].decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail("a string is not UTF-8") from None

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            return self.array()
        if kind not in SCALARS:
            raise self.fail(f"value type {kind} is not part of the format")
        return self.number(SCALARS[kind])

    def array(self) -> list[Any]:
        kind, count = self.number("I"), self.number("Q")
        if kind == ARRAY or (kind != STRING and kind not in SCALARS):
            raise self.fail(f"an array of value type {kind} is not supported")
        item = 8 if kind == STRING else struct.calcsize("<" + SCALARS[kind])
        if count > ARRAY_MAX or count * item > self.size - self.at:
            raise self.fail(f"an array of {count} entries does not fit")
        if kind == STRING:
            return [self.text() for _ in range(count)]
        return list(struct.unpack_from(f"<{count}{SCALARS[kind]}", self.data, self.need(count * item)))


def read_gguf(path: Path) -> GGUFHeader:
    """Read and check a GGUF header. Raises ConvertError naming the file, what is wrong and where, and the remedy."""
    try:
        with open(path, "rb") as f:
            if not (first := f.read(8)).startswith(b"GGUF") or len(first) < 8:
                raise ConvertError(f"{path} is not a GGUF file (it starts with {first[:4]!r}): give a .gguf model file")
            with mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parse(_Reader(data, path))
    except OSError as error:
        raise ConvertError(f"cannot read {path}: {error.strerror or error}") from None


def _parse(r: _Reader) -> GGUFHeader:
    r.at = 4
    version = r.number("I")
    if version not in (2, 3):
        big = " (it is a big-endian file)" if version & 0xFFFF == 0 else ""
        raise ConvertError(
            f"{r.path}: GGUF version {version}{big} must be 2 or 3, little-endian: convert it again with a current llama.cpp"
        )
    tensors, keys = r.number("Q"), r.number("Q")
    if max(tensors, keys) > ENTRIES_MAX:
        raise r.fail(f"it claims {tensors} tensors and {keys} metadata keys")
    metadata: dict[str, Any] = {}
    for _ in range(keys):
        key = r.text()
        if key in metadata:
            raise r.fail(f"metadata key {key!r} appears twice")
        metadata[key] = r.value(r.number("I"))
    raw = [_tensor_entry(r) for _ in range(tensors)]
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1) or alignment > 1 << 20:
        raise r.fail(f"general.alignment {alignment!r} is not a power of two")
    return GGUFHeader(metadata, _place(r, raw, -(-r.at // alignment) * alignment, alignment))


def _tensor_entry(r: _Reader) -> tuple[str, tuple[int, ...], int, int]:
    name, dims = r.text(), r.number("I")
    if not 1 <= dims <= 4:
        raise r.fail(f"tensor {name} has {dims} dimensions")
    shape = tuple(reversed([r.number("Q") for _ in range(dims)]))
    if any(not 0 < n < 1 << 40 for n in shape):
        raise r.fail(f"tensor {name} has shape {list(shape)}")
    return name, shape, r.number("I"), r.number("Q")


def _place(r: _Reader, raw: list[tuple[str, tuple[int, ...], int, int]], data: int, alignment: int) -> dict[str, GGUFTensor]:
    sizes = block_sizes()
    tensors: dict[str, GGUFTensor] = {}
    at = 0
    for name, shape, kind, offset in sorted(raw, key=lambda t: t[3]):
        if name in tensors:
            raise r.fail(f"tensor {name} appears twice")
        if kind not in sizes:
            raise ConvertError(f"{r.path}: tensor {name} has ggml type {kind}, unknown to this gguf package: pip install --upgrade gguf")
        label, items, item_bytes = sizes[kind]
        if shape[-1] % items:
            raise r.fail(f"tensor {name} {list(shape)} has rows that are no multiple of {label}'s block of {items}")
        nbytes = math.prod(shape) // items * item_bytes
        if offset % alignment or offset < at:
            raise r.fail(f"tensor {name} starts at data byte {offset}, inside or before what comes first (expected {at} or later)")
        at = offset + nbytes
        if data + at > r.size:
            raise ConvertError(f"{r.path}: tensor {name} ends at byte {data + at}, the file has {r.size}: {REMEDY}")
        tensors[name] = GGUFTensor(name, label, shape, data + offset, nbytes)
    return tensors


def block_sizes() -> dict[int, tuple[str, int, int]]:
    """ggml type number -> (name, values per block, bytes per block)."""
    from gguf.constants import GGML_QUANT_SIZES

    return {int(kind): (kind.name, items, nbytes) for kind, (items, nbytes) in GGML_QUANT_SIZES.items()}


def get(header: GGUFHeader, path: Path, key: str, check: Callable[[Any], bool], what: str, default: Any = None) -> Any:
    """Metadata `key`, or `default` when absent. Raises ConvertError unless `check` accepts it; `what` says what it
    must be."""
    value = header.metadata.get(key, default)
    if value is None or not check(value):
        state = "is missing: it" if value is None else f"{value!r}"[:80]
        raise ConvertError(f"{path}: metadata {key} {state} must be {what}: convert the model to GGUF again")
    return value
