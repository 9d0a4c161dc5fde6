"""More tokens carried over than the window has."""

from forge import with_content

ERROR = "SessionValueError"


def attack(good: bytes) -> bytes:
    return with_content(good, lambda c: c["window"].update(carried=4, folds=[]))
