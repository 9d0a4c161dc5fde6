"""session.json lacks the document."""

from forge import with_text

ERROR = "SessionFormatError"


def attack(good: bytes) -> bytes:
    return with_text(good, lambda t: t.replace('"document"', '"dokument"'))
