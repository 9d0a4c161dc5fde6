"""Version 1 with a snapshot of version 2."""

from forge import version_1, with_table

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    return with_table(version_1(good), lambda t: t[0].update(carried=0, folds=[]))
