"""A negative count made up for by another."""

from forge import with_table

ERROR = "SessionValueError"


def attack(good: bytes) -> bytes:
    return with_table(good, lambda t: (t[0].update(tokens=-1), t[1].update(tokens=3)))
