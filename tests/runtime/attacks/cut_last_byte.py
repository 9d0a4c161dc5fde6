"""One byte short."""

ERROR = "SessionTruncatedError"


def attack(good: bytes) -> bytes:
    return good[:-1]
