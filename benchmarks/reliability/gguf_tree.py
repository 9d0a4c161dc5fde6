"""A GGUF file taken apart into lists, and put together again from lists that may say anything. Knows the container's layout, checks nothing."""

import struct
from typing import Any

CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def parse(data: bytes) -> dict[str, Any]:
    """pairs: [key, type, value] (an array's type is (9, type of its items)); tensors: [name, dims, type, offset]; rest: the bytes after."""
    at = 4

    def number(code: str) -> Any:
        nonlocal at
        at += struct.calcsize("<" + code)
        if at > len(data):
            raise ValueError("cut off")
        return struct.unpack_from("<" + code, data, at - struct.calcsize("<" + code))[0]

    def text() -> str:
        nonlocal at
        size = number("Q")
        if size > len(data) - at:
            raise ValueError("cut off")
        at += size
        return data[at - size : at].decode()

    def value(kind: int) -> Any:
        return text() if kind == 8 else number(CODES[kind])

    version, tensors, keys = number("I"), number("Q"), number("Q")
    if max(tensors, keys) > 10000:
        raise ValueError("too many")
    pairs: list[list[Any]] = []
    for _ in range(keys):
        key, kind = text(), number("I")
        if kind == 9:
            inner, count = number("I"), number("Q")
            if count > len(data):
                raise ValueError("too many")
            pairs.append([key, (9, inner), [value(inner) for _ in range(count)]])
        else:
            pairs.append([key, kind, value(kind)])
    table = [[text(), [number("Q") for _ in range(number("I"))], number("I"), number("Q")] for _ in range(tensors)]
    start = -(-at // 32) * 32
    return {"version": version, "pairs": pairs, "tensors": table, "rest": data[start:]}


def build(tree: dict[str, Any]) -> bytes:
    """The file a tree describes. Raises ValueError or TypeError for what no file can say."""

    def text(x: Any) -> bytes:
        raw = str(x).encode("utf-8", "surrogatepass")
        return struct.pack("<Q", len(raw)) + raw

    def value(kind: int, x: Any) -> bytes:
        if kind == 8:
            return text(x)
        try:
            return struct.pack("<" + CODES[kind], x)
        except struct.error:
            raise ValueError(f"{x!r} is no {CODES[kind]}") from None

    out = [b"GGUF", struct.pack("<IQQ", tree["version"], len(tree["tensors"]), len(tree["pairs"]))]
    for key, kind, x in tree["pairs"]:
        if isinstance(kind, tuple):
            out += [text(key), struct.pack("<IIQ", 9, kind[1], len(x)), *(value(kind[1], i) for i in x)]
        else:
            out += [text(key), struct.pack("<I", kind), value(kind, x)]
    for name, dims, kind, offset in tree["tensors"]:
        out += [text(name), struct.pack("<I", len(dims)), *(struct.pack("<Q", n) for n in dims), struct.pack("<IQ", kind, offset)]
    head = b"".join(out)
    return head + bytes(-len(head) % 32) + tree["rest"]
