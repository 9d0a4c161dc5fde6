"""Another header digest."""

ERROR = "SessionCorruptError"


def attack(good: bytes) -> bytes:
    at = good.index(b'"header_sha256":"') + 17
    return good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
