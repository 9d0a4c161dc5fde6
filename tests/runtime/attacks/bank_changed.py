"""A bank's bit changed without a new digest."""

ERROR = "SessionCorruptError"


def attack(good: bytes) -> bytes:
    at = 8 + int.from_bytes(good[:8], "little") + 100
    return good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
