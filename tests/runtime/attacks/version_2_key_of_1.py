"""Version 2 that counts chunks, as version 1 did."""

from forge import with_meta

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    return with_meta(good, written=None, chunks="2")
