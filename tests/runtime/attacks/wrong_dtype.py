"""Tokens as F32: four bytes each, other numbers."""

from forge import seal, split

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    header, arrays = split(good)
    header["chunk.tokens"]["dtype"] = "F32"
    return seal(header, arrays)
