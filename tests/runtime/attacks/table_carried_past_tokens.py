"""A snapshot that carried more tokens than it has."""

from forge import with_table

ERROR = "SessionValueError"


def attack(good: bytes) -> bytes:
    return with_table(good, lambda t: t[2].update(carried=2))
