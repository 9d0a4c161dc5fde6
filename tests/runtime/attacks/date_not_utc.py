"""A local time."""

from forge import with_meta

ERROR = "SessionValueError"


def attack(good: bytes) -> bytes:
    return with_meta(good, updated="2025-02-01T12:00:00+02:00")
