"""A metadata key is missing."""

from forge import with_meta

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    return with_meta(good, draws=None)
