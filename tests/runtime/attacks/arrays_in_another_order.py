"""Entries of the header in another order."""

from forge import seal, split

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    header, arrays = split(good)
    return seal(dict(reversed(header.items())), arrays)
