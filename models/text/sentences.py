"""Where sentences of a text end, and the question at its end. Knows texts, no tokens."""

import re

PARTS = re.compile(r"(?<=[.!?…।؟])(?=\s)|(?<=[。！？])|(?=\n)")  # some scripts put no blank after a sentence
ASKS = ("?", "？", "؟")  # ends of a question


def question_at_end(text: str, most: int) -> str:
    """The question with which a text ends, of its last `most` characters, in one line; nothing where it ends with none."""
    text = text.rstrip()
    if not text.endswith(ASKS):
        return ""
    return " ".join([part for part in PARTS.split(text[-most:]) if part.strip()][-1].split())
