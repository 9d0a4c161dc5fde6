"""A model whose large initializers lie in a side file, written as one file: what protobuf would write of the model with all of them in it, byte for byte.

Protobuf writes a message from a copy of it in memory. A message here is written as its fields in order of their numbers, which is what protobuf does, the small
ones by protobuf itself; only what leads to an initializer in the side file is taken apart, and the initializer's bytes are copied from file to file.
Knows messages of onnx; no graph, no model.
"""

from typing import Any, BinaryIO, NamedTuple

import onnx
from onnx import TensorProto

COPY_BYTES = 1 << 20
DELIMITED = 2  # the wire type of bytes and messages: their length comes before them
RAW_DATA = TensorProto.DESCRIPTOR.fields_by_name["raw_data"].number
WAY = (onnx.ModelProto, onnx.GraphProto, onnx.NodeProto, onnx.AttributeProto)  # messages that may lead to an initializer


class Span(NamedTuple):
    """Bytes of the side file."""

    begin: int
    length: int


Chunk = bytes | Span


def write_whole(model: onnx.ModelProto, side: BinaryIO, out: BinaryIO) -> None:
    """Write `model` into `out`, with the initializers that it refers to in `side` where they belong."""
    for chunk in chunks(model):
        if isinstance(chunk, bytes):
            out.write(chunk)
            continue
        side.seek(chunk.begin)
        left = chunk.length
        while left:
            block = side.read(min(left, COPY_BYTES))
            if not block:
                raise EOFError(f"{getattr(side, 'name', 'side file')} ends {left} bytes early")
            out.write(block)
            left -= len(block)


def chunks(message: Any) -> list[Chunk]:
    """What a message is on the wire."""
    if isinstance(message, TensorProto) and message.data_location == TensorProto.EXTERNAL:
        return _tensor(message)
    if not isinstance(message, WAY):
        return [message.SerializeToString()]
    out: list[Chunk] = []
    for field, value in message.ListFields():
        if field.message_type is None:
            own = type(message)()
            _copy(own, field.name, value)
            out.append(own.SerializeToString())
            continue
        for item in value if _repeated(value) else [value]:
            inner = chunks(item)
            size = sum(chunk.length if isinstance(chunk, Span) else len(chunk) for chunk in inner)
            out += [tag(field.number, size), *inner]
    return out


def tag(number: int, size: int) -> bytes:
    """What comes before `size` bytes of field `number`."""
    return varint(number << 3 | DELIMITED) + varint(size)


def varint(value: int) -> bytes:
    """A whole number that is not negative, seven bits in a byte, the lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _tensor(tensor: onnx.TensorProto) -> list[Chunk]:
    """A tensor of the side file with its bytes in it."""
    where = {entry.key: entry.value for entry in tensor.external_data}
    span = Span(int(where["offset"]), int(where["length"]))
    before, after = TensorProto(), TensorProto()
    for field, value in tensor.ListFields():
        if field.name not in ("external_data", "data_location"):
            _copy(before if field.number < RAW_DATA else after, field.name, value)
    return [before.SerializeToString(), tag(RAW_DATA, span.length), span, after.SerializeToString()]


def _copy(to: Any, name: str, value: Any) -> None:
    if _repeated(value):
        getattr(to, name).extend(value)
    else:
        setattr(to, name, value)


def _repeated(value: Any) -> bool:
    """Whether a field's value is one of many; how a field says so itself depends on protobuf's version."""
    return not isinstance(value, (str, bytes, int, float)) and not hasattr(value, "ListFields")
