"""Notes that are a list."""

from forge import with_text

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    return with_text(good, lambda t: t.replace('"notes":{"starts":[1]}', '"notes":[3]'))
