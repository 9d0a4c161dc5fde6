"""A model name of 10,000 letters."""

from forge import with_meta

ERROR = "SessionValueError"


def attack(good: bytes) -> bytes:
    return with_meta(good, model="m" * 10_000)
