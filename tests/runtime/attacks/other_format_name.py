"""Another program's format name."""

from forge import with_meta

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    return with_meta(good, format="other-session")
