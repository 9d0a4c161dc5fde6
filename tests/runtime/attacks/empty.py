"""No bytes at all."""

ERROR = "SessionTruncatedError"


def attack(good: bytes) -> bytes:
    return b""
