"""A header of 400,000 opening brackets: the parser's stack."""

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    raw = b"[" * 400_000
    return len(raw).to_bytes(8, "little") + raw
