"""A fold among the tokens that are in the memory already."""

from forge import with_content

ERROR = "SessionValueError"


def attack(good: bytes) -> bytes:
    return with_content(good, lambda c: c["window"].update(folds=[1, 3]))
