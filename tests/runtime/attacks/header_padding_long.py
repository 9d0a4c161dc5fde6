"""Eight spaces more than needed behind the header, digests right."""

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    length = int.from_bytes(good[:8], "little")
    return (length + 8).to_bytes(8, "little") + good[8 : 8 + length] + b" " * 8 + good[8 + length :]
