"""The one place where a tokenizer.json is opened with the `tokenizers` library. Knows no model folder.

Truncation and padding saved in the file are off: they belong to whoever saved them, and would cut texts without a word.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import TokenizerError

if TYPE_CHECKING:
    import tokenizers

REMEDY = "restore the file or convert the model again"


def open_library(data: bytes, name: str, remedy: str = REMEDY) -> "tokenizers.Tokenizer":
    """The library's object of a tokenizer.json's content. Raises TokenizerError naming `name` for anything that is none."""
    import tokenizers

    try:
        library = tokenizers.Tokenizer.from_buffer(data)
        library.no_truncation()
        library.no_padding()
        return library
    except BaseException as error:
        # The library reports some malformed files as a Rust panic, which is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        said = " ".join(str(error).split())[:200]
        raise TokenizerError(f"{name} is not a tokenizer.json this version can read ({said}): {remedy}") from None


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
