"""Tokens with two axes."""

from forge import with_array

ERROR = "SessionShapeError"


def attack(good: bytes) -> bytes:
    return with_array(good, "chunk.tokens", bytes(16), [2, 2])
