"""Offsets that end before they begin."""

from forge import seal, split

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    header, arrays = split(good)
    header["chunk.tokens"]["data_offsets"].reverse()
    return seal(header, arrays)
