"""A day that does not exist."""

from forge import with_meta

ERROR = "SessionValueError"


def attack(good: bytes) -> bytes:
    return with_meta(good, created="2025-02-30T12:00:00Z")
