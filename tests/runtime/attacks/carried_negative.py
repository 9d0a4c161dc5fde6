"""Less than no tokens carried over."""

from forge import with_content

ERROR = "SessionValueError"


def attack(good: bytes) -> bytes:
    return with_content(good, lambda c: c["window"].update(carried=-1))
