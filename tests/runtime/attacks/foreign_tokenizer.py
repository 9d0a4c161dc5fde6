"""The right model, another tokenizer."""

from forge import with_meta

ERROR = "SessionTokenizerError"


def attack(good: bytes) -> bytes:
    return with_meta(good, tokenizer="c" * 64)
