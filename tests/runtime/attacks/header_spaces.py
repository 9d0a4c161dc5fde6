"""The same header with spaces between its entries, digests right."""

from forge import seal, split

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    return seal(*split(good), text=lambda t: t.replace('"chunk.tokens":{', '"chunk.tokens": {'))
