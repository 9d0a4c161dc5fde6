"""Version 1 in its metadata, version 2 in its text."""

from forge import with_meta

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    return with_meta(good, version="1", written=None, chunks="2")
