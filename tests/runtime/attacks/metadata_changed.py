"""A count raised without a new digest."""

ERROR = "SessionCorruptError"


def attack(good: bytes) -> bytes:
    return good.replace(b'"draws":"17"', b'"draws":"18"')
