"""Token counts that do not add up to the tokens stored."""

from forge import with_table

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    return with_table(good, lambda t: t[0].update(tokens=1))
