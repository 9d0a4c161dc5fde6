"""A bank whose rows and width are exchanged, of the right model."""

from forge import seal, split

ERROR = "SessionShapeError"


def attack(good: bytes) -> bytes:
    header, arrays = split(good)
    header["memory.bank"]["shape"] = [2, 1, 8, 4]
    header["snapshots.banks"]["shape"] = [1, 2, 1, 8, 4]
    return seal(header, arrays)
