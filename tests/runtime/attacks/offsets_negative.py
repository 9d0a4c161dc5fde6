"""An offset below zero."""

from forge import seal, split

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    header, arrays = split(good)
    header["memory.bank"]["data_offsets"][0] = -256
    return seal(header, arrays)
