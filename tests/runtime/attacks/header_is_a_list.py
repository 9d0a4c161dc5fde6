"""A header that is a JSON list."""

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    raw = b"[1,2,3] "
    return len(raw).to_bytes(8, "little") + raw
