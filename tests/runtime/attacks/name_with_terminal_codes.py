"""A model name that would clear the user's terminal."""

from forge import with_meta

ERROR = "SessionValueError"


def attack(good: bytes) -> bytes:
    return with_meta(good, model="\x1b[2Jtiny")
