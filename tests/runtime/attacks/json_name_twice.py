"""A name twice in one object."""

from forge import with_text

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    return with_text(good, lambda t: t.replace('"starts":[1]', '"starts":[1],"starts":[2]'))
