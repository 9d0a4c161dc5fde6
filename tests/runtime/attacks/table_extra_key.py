"""A snapshot with a key that does not belong there."""

from forge import with_table

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    return with_table(good, lambda t: t[0].update(extra=1))
