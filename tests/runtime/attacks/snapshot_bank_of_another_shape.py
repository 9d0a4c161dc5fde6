"""Snapshots whose banks are shaped otherwise than the current one."""

from forge import seal, split

ERROR = "SessionShapeError"


def attack(good: bytes) -> bytes:
    header, arrays = split(good)
    header["snapshots.banks"]["shape"] = [1, 2, 1, 8, 4]
    return seal(header, arrays)
