"""One token more than the longest window has positions."""

from forge import with_array

ERROR = "SessionShapeError"


def attack(good: bytes) -> bytes:
    return with_array(good, "chunk.tokens", bytes(4 * 7), [7])
