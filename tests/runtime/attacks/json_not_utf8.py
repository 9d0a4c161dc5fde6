"""session.json is not UTF-8."""

from forge import split, with_array

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    text = b"\xff" + split(good)[1]["session.json"][1:]
    return with_array(good, "session.json", text)
