"""No place in a window."""

from forge import with_content

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    return with_content(good, lambda c: c.pop("window"))
