"""More carried tokens than 64 bits."""

from forge import with_content

ERROR = "SessionValueError"


def attack(good: bytes) -> bytes:
    return with_content(good, lambda c: c["window"].update(carried=2**70))
