"""A version this lm2 does not know yet."""

from forge import with_meta

ERROR = "SessionVersionError"


def attack(good: bytes) -> bytes:
    return with_meta(good, version="3")
