"""A version in digits of another script, which int() would take."""

from forge import with_meta

ERROR = "SessionVersionError"


def attack(good: bytes) -> bytes:
    return with_meta(good, version="２")
