"""Half a surrogate pair in a name."""

from forge import seal, split

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    return seal(*split(good), text=lambda t: t.replace('"tiny"', '"t\\ud800ny"'))
