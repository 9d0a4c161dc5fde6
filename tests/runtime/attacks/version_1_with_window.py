"""Version 1 with a place in a window."""

from forge import version_1, with_content

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    return with_content(version_1(good), lambda c: c.update(window={"carried": 0, "folds": []}))
