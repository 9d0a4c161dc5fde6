"""Version 1 with a snapshot's chunks as text."""

from forge import version_1, with_table

ERROR = "SessionValueError"


def attack(good: bytes) -> bytes:
    return with_table(version_1(good), lambda t: t[0].update(chunks="1"))
