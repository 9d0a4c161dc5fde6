"""A text file."""

ERROR = "SessionTooLargeError"


def attack(good: bytes) -> bytes:
    return b"Dear diary, this is not a session file.\n" * 10
