"""Cut inside the eight bytes of the header's length."""

ERROR = "SessionTruncatedError"


def attack(good: bytes) -> bytes:
    return good[:5]
