"""A header that is not UTF-8."""

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    return good.replace(b'"model":"tiny"', b'"model":"tin\xff"')
