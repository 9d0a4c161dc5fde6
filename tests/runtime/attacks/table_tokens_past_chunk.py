"""A snapshot with more tokens than the longest window has."""

from forge import with_array, with_table

ERROR = "SessionValueError"


def attack(good: bytes) -> bytes:
    longer = with_array(good, "snapshots.tokens", bytes(4 * 8), [8])
    return with_table(longer, lambda t: t[0].update(tokens=7) or t[1].update(tokens=0, folds=[]))
