"""The one place where a tokenizer.json is opened with the `tokenizers` library. Knows no model folder.

Truncation, padding and dropout saved in the file are off: they belong to whoever saved them, and would cut texts, or split them by chance,
without a word.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..errors import LM2Error, TokenizerError

if TYPE_CHECKING:
    import tokenizers

REMEDY = "restore the file or convert the model again"


def open_library(data: bytes, name: str, remedy: str = REMEDY, marked: bool = False) -> "tokenizers.Tokenizer":
    """The library's object of a tokenizer.json's content. marked: pieces may be marked inside a word, as WordPiece has them. Raises TokenizerError naming
    `name` for anything that is none."""
    import tokenizers

    with refusals(lambda said: TokenizerError(f"{name} is not a tokenizer.json this version can read ({said}): {remedy}")):
        _check_model(data, marked)
        library = tokenizers.Tokenizer.from_buffer(data)
        library.no_truncation()
        library.no_padding()
        if getattr(library.model, "dropout", None) is not None:
            library.model.dropout = None  # chance, for training: a text has one set of ids
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


def _check_model(data: bytes, marked: bool) -> None:
    """Raise ValueError for pieces that are marked inside a word, unless they are WordPiece's and `marked`: the library ends the process when a BPE's merge
    does not carry the mark; and, naming both, when two tokens of the vocabulary share an id, which the library decodes to either, by chance."""
    spec = json.loads(data)
    model = spec.get("model") if isinstance(spec, dict) else None
    if not isinstance(model, dict):
        return
    for key in () if marked and model.get("type") == "WordPiece" else ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise ValueError(f"model.{key} {model[key]!r} is not of a kind that Llama models use")
    vocab = model.get("vocab")
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


def check_places(library: "tokenizers.Tokenizer", spec: Mapping[str, Any], name: str) -> None:
    """Raise TokenizerError if an added token of a tokenizer.json, `spec`, has another id than the library gave it: it numbers them itself."""
    for token in spec.get("added_tokens") or ():
        got = library.token_to_id(token["content"])
        if got != token["id"]:
            raise TokenizerError(f"{name}: added token {token['content']!r} has id {token['id']}, its place gives it {got}: restore the file")
