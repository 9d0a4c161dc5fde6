"""A snapshot of bank -2: an index from the end."""

from forge import with_table

ERROR = "SessionValueError"


def attack(good: bytes) -> bytes:
    return with_table(good, lambda t: t[0].update(bank=-2))
