"""A second file behind the first."""

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    return good + good
