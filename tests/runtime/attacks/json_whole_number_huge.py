"""A whole number of 100 digits."""

from forge import with_text

ERROR = "SessionValueError"


def attack(good: bytes) -> bytes:
    return with_text(good, lambda t: t.replace("0.5", "9" * 100))
