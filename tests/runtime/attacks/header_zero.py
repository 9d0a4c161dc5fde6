"""A header of no bytes."""

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    return bytes(8) + good[8:]
