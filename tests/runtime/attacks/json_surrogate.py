"""Half a surrogate pair in the document."""

from forge import with_text

ERROR = "SessionValueError"


def attack(good: bytes) -> bytes:
    return with_text(good, lambda t: t.replace("brief", "\\ud83d"))
