"""A stored bank that no snapshot uses."""

from forge import with_table

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    return with_table(good, lambda t: [row.update(bank=-1) for row in t])
