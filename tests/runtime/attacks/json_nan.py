"""NaN, which is no JSON."""

from forge import with_text

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    return with_text(good, lambda t: t.replace("0.5", "NaN"))
