"""200,000 opening brackets in session.json."""

from forge import with_text

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    return with_text(good, lambda t: "[" * 200_000)
