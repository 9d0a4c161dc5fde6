"""A document of 9 MiB."""

from forge import with_text

ERROR = "SessionTooLargeError"


def attack(good: bytes) -> bytes:
    return with_text(good, lambda t: t.replace("brief", "x" * (9 << 20)))
