"""A snapshot with less than nothing in the memory."""

from forge import with_table

ERROR = "SessionValueError"


def attack(good: bytes) -> bytes:
    return with_table(good, lambda t: t[0].update(written=-1))
