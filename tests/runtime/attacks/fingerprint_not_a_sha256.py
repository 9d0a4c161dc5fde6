"""A fingerprint that is no sha256."""

from forge import with_meta

ERROR = "SessionValueError"


def attack(good: bytes) -> bytes:
    return with_meta(good, fingerprint="A" * 64)
