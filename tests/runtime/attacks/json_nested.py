"""A document 40 levels deep."""

from forge import with_text

ERROR = "SessionValueError"


def attack(good: bytes) -> bytes:
    return with_text(good, lambda t: t.replace('"Be brief."', "[" * 40 + "]" * 40))
