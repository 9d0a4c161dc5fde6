"""The header whole, not one byte of an array."""

ERROR = "SessionTruncatedError"


def attack(good: bytes) -> bytes:
    return good[: 8 + int.from_bytes(good[:8], "little")]
