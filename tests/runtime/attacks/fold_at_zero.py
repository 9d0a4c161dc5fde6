"""A fold before the first token, which writes nothing."""

from forge import with_content

ERROR = "SessionValueError"


def attack(good: bytes) -> bytes:
    return with_content(good, lambda c: c["window"].update(carried=0, folds=[0, 2]))
