"""`true` where a size of 1 belongs."""

from forge import seal, split

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    header, arrays = split(good)
    header["memory.bank"]["shape"][1] = True
    return seal(header, arrays)
