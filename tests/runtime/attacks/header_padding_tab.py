"""Padding of tabs instead of spaces: the same JSON, other bytes."""

from forge import seal, split

ERROR = "SessionCorruptError"


def attack(good: bytes) -> bytes:
    for n in range(1, 9):  # a name that leaves room for padding
        header, arrays = split(good)
        header["__metadata__"]["model"] = "m" * n
        if (tabs := seal(header, arrays, pad=b"\t")) != seal(header, arrays):
            return tabs
    raise AssertionError("no header had padding")
