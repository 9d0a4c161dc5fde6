"""A window with a key that does not belong there."""

from forge import with_content

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    return with_content(good, lambda c: c["window"].update(slides=1))
