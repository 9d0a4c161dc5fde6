"""A version with a zero before it."""

from forge import with_meta

ERROR = "SessionVersionError"


def attack(good: bytes) -> bytes:
    return with_meta(good, version="02")
