"""tokenizer.json from outside, beyond what the tokenizers library checks. Knows neither models nor texts.

The library ends some malformed files in a Rust panic, which is no Exception, and takes a vocabulary with two tokens of one id, of which it then
decodes to either.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .errors import LM2Error


@contextmanager
def refusals(fail: Callable[[str], LM2Error]) -> Iterator[None]:
    """Around calls of the library: whatever it raises becomes `fail(what it said)`."""
    try:
        yield
    except LM2Error:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise fail(" ".join(str(error).split())[:200] or type(error).__name__) from None


def check_vocabulary(data: bytes) -> None:
    """Raise ValueError, naming both, when two tokens of the vocabulary share an id."""
    model = json.loads(data).get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocab, dict) or len(set(vocab.values())) == len(vocab):
        return
    first: dict[int, str] = {}
    for token, i in vocab.items():
        if i in first:
            raise ValueError(f"tokens {first[i]!r} and {token!r} both have id {i}")
        first[i] = token
