"""Version 1 with a snapshot of more tokens than a chunk."""

from forge import version_1, with_array, with_table

ERROR = "SessionValueError"


def attack(good: bytes) -> bytes:
    return with_table(with_array(version_1(good), "snapshots.tokens", bytes(4 * 6), [6]), lambda t: t[1].update(tokens=5))
