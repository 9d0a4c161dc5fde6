"""A snapshot of a bank that is not stored."""

from forge import with_table

ERROR = "SessionValueError"


def attack(good: bytes) -> bytes:
    return with_table(good, lambda t: t[0].update(bank=1))
