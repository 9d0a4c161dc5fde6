"""A header that is not JSON."""

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    return good[:8] + b"x" + good[9:]
