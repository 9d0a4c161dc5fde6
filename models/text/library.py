"""The one place where a tokenizer.json is opened with the `tokenizers` library. Knows no model folder.

Truncation, padding and dropout saved in the file are off: they belong to whoever saved them, and would cut texts, or split them by chance, without a word.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..errors import LM2Error, TokenizerError

if TYPE_CHECKING:
    import tokenizers

REMEDY = "restore the file or convert the model again"


def open_library(data: bytes, name: str, remedy: str = REMEDY) -> "tokenizers.Tokenizer":
    """The library's object of a tokenizer.json's content. Raises TokenizerError naming `name` for anything that is none."""
    import tokenizers

    with refusals(lambda said: TokenizerError(f"{name} is not a tokenizer.json this version can read ({said}): {remedy}")):
        library = tokenizers.Tokenizer.from_buffer(data)
        library.no_truncation()
        library.no_padding()
        if getattr(library.model, "dropout", None) is not None:
            library.model.dropout = None  # chance, for training: a text has one set of ids
        _check_vocabulary(data)
        return library


@contextmanager
def refusals(fail: Callable[[str], LM2Error]) -> Iterator[None]:
    """Around calls of the library: whatever it raises becomes `fail(what it said)`. Some malformed files end in a Rust panic, which is no Exception."""
    try:
        yield
    except LM2Error:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise fail(" ".join(str(error).split())[:200] or type(error).__name__) from None


def _check_vocabulary(data: bytes) -> None:
    """Raise ValueError, naming both, when two tokens of the model's vocabulary share an id: the library decodes it to either, by chance."""
    model = json.loads(data).get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocab, dict) or len(set(vocab.values())) == len(vocab):
        return
    first: dict[int, str] = {}
    for token, i in vocab.items():
        if i in first:
            raise ValueError(f"tokens {first[i]!r} and {token!r} both have id {i}")
        first[i] = token


def ids_of(library: "tokenizers.Tokenizer", text: str) -> list[int]:
    """Ids of a text, without what a post-processor puts around it."""
    ids: list[int] = library.encode(text, add_special_tokens=False).ids
    return ids
