"""Cut inside the header."""

ERROR = "SessionTruncatedError"


def attack(good: bytes) -> bytes:
    return good[:100]
