"""The session of another model of the same shape."""

from forge import with_meta

ERROR = "SessionModelError"


def attack(good: bytes) -> bytes:
    return with_meta(good, fingerprint="c" * 64, model="other")
