"""Folds as text, which can be gone through like a list."""

from forge import with_content

ERROR = "SessionValueError"


def attack(good: bytes) -> bytes:
    return with_content(good, lambda c: c["window"].update(folds="23"))
