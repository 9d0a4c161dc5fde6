"""One snapshot more than allowed."""

from forge import with_table

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    return with_table(good, lambda t: t.extend([{"bank": -1, "chunks": 0, "tokens": 0, "notes": {}}] * 14))
