"""Version 1 with a snapshot whose chunks are more tokens than 64 bits."""

from forge import version_1, with_table

ERROR = "SessionValueError"


def attack(good: bytes) -> bytes:
    return with_table(version_1(good), lambda t: t[0].update(chunks=2**62))
