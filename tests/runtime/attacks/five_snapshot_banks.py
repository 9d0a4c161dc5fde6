"""One bank more than allowed."""

from forge import with_array

ERROR = "SessionShapeError"


def attack(good: bytes) -> bytes:
    return with_array(good, "snapshots.banks", bytes(5 * 256), [5, 2, 1, 4, 8])
