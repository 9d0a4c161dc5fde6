"""A window that does not say where it is folded."""

from forge import with_content

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    return with_content(good, lambda c: c["window"].pop("folds"))
