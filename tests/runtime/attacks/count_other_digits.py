"""A count in digits of another script, which int() would take."""

from forge import with_meta

ERROR = "SessionValueError"


def attack(good: bytes) -> bytes:
    return with_meta(good, draws="１７")
