"""Two arrays over the same bytes."""

from forge import seal, split

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    header, arrays = split(good)
    header["chunk.tokens"]["data_offsets"] = [0, 12]
    return seal(header, arrays)
