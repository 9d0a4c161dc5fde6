"""Two negative sizes whose product is right."""

from forge import seal, split

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    header, arrays = split(good)
    header["memory.bank"]["shape"] = [-2, -1, 4, 8]
    return seal(header, arrays)
