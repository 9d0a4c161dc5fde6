"""Version 1 with so many chunks that their tokens are more than 64 bits."""

from forge import version_1, with_meta

ERROR = "SessionValueError"


def attack(good: bytes) -> bytes:
    return with_meta(version_1(good), chunks=str(2**62))
