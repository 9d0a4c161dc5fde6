"""A name twice in one object."""

from forge import with_text

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    return with_text(good, lambda t: t.replace('"turn":3', '"turn":3,"turn":4'))
