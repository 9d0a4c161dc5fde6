"""Version 2 in its metadata, version 1 in its text."""

from forge import version_1, with_meta

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    return with_meta(version_1(good), version="2", chunks=None, written="9")
