"""An array of 1,000 axes."""

from forge import seal, split

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    header, arrays = split(good)
    header["memory.bank"]["shape"] += [1] * 1000
    return seal(header, arrays)
