"""The version's digit changed by damage: corruption, not a newer lm2."""

ERROR = "SessionCorruptError"


def attack(good: bytes) -> bytes:
    return good.replace(b'"version":"2"', b'"version":"3"')
