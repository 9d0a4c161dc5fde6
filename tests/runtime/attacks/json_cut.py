"""session.json cut short, digests right."""

from forge import with_text

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    return with_text(good, lambda t: t[:-1])
