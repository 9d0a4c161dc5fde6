"""A header that claims 2^64 - 1 bytes."""

ERROR = "SessionTooLargeError"


def attack(good: bytes) -> bytes:
    return b"\xff" * 8 + good[8:]
