"""A metadata key that does not belong there."""

from forge import with_meta

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    return with_meta(good, note="hello")
