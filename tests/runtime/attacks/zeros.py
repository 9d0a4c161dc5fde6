"""As many zero bytes as the file had (a file system after a crash)."""

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    return bytes(len(good))
