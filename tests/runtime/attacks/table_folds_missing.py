"""A snapshot that does not say where it is folded."""

from forge import with_table

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    return with_table(good, lambda t: t[1].pop("folds"))
