"""A snapshot that is a number."""

from forge import with_table

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    return with_table(good, lambda t: t.__setitem__(0, 5))
