"""A dtype that does not exist."""

from forge import seal, split

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    header, arrays = split(good)
    header["chunk.tokens"]["dtype"] = "Q4"
    return seal(header, arrays)
