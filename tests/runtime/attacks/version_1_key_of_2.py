"""Version 1 that counts tokens, as version 2 does."""

from forge import version_1, with_meta

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    return with_meta(version_1(good), chunks=None, written="9")
