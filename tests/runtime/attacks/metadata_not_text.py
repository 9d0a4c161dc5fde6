"""A number where metadata must be text."""

from forge import seal, split

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    return seal(*split(good), text=lambda t: t.replace('"draws":"17"', '"draws":17'))
