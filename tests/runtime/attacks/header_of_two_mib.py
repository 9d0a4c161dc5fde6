"""A header that is really 2 MiB long, of spaces."""

ERROR = "SessionTooLargeError"


def attack(good: bytes) -> bytes:
    length = int.from_bytes(good[:8], "little")
    raw = good[8 : 8 + length] + b" " * (2 << 20)
    return len(raw).to_bytes(8, "little") + raw + good[8 + length :]
