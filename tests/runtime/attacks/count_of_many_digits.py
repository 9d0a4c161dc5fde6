"""A count of 100,000 digits."""

from forge import with_meta

ERROR = "SessionValueError"


def attack(good: bytes) -> bytes:
    return with_meta(good, draws="9" * 100_000)
