"""One snapshot more than allowed."""

from forge import with_table

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    empty = {"bank": -1, "written": 0, "tokens": 0, "carried": 0, "folds": [], "notes": {}}
    return with_table(good, lambda t: t.extend([empty] * 14))
