"""A window that is a list."""

from forge import with_content

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    return with_content(good, lambda c: c.update(window=[1, [2, 3]]))
