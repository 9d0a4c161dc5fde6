"""The same header with a letter written as an escape, digests right."""

from forge import seal, split

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    return seal(*split(good), text=lambda t: t.replace('"tiny"', '"t\\u0069ny"'))
