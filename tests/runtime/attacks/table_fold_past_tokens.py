"""A snapshot folded after its last token."""

from forge import with_table

ERROR = "SessionValueError"


def attack(good: bytes) -> bytes:
    return with_table(good, lambda t: t[1].update(folds=[1, 3]))
