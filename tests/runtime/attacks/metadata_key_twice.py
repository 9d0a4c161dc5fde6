"""A metadata key named twice."""

from forge import seal, split

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    return seal(*split(good), text=lambda t: t.replace('"draws":"17"', '"draws":"17","draws":"18"'))
