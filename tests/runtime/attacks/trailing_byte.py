"""One byte too many."""

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    return good + b"\0"
