"""A number that becomes infinity."""

from forge import with_text

ERROR = "SessionValueError"


def attack(good: bytes) -> bytes:
    return with_text(good, lambda t: t.replace("0.5", "1e999"))
