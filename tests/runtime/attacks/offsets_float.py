"""An offset that is not a whole number."""

from forge import seal, split

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    header, arrays = split(good)
    header["memory.bank"]["data_offsets"][0] = 0.0
    return seal(header, arrays)
