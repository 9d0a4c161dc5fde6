"""Version 1 with more tokens than its chunk, which a window may have now."""

from forge import version_1, with_array

ERROR = "SessionShapeError"


def attack(good: bytes) -> bytes:
    return with_array(version_1(good), "chunk.tokens", bytes(4 * 5), [5])
