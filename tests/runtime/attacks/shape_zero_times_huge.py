"""A shape with a zero and a size no machine has."""

from forge import lay_out, seal, split

ERROR = "SessionShapeError"


def attack(good: bytes) -> bytes:
    header, arrays = split(good)
    arrays["memory.bank"] = b""
    header["memory.bank"]["shape"] = [0, 1, 1 << 47, 1 << 47]
    lay_out(header, arrays)
    return seal(header, arrays)
