"""`false` where bank 0 belongs."""

from forge import with_table

ERROR = "SessionValueError"


def attack(good: bytes) -> bytes:
    return with_table(good, lambda t: t[0].update(bank=False))
