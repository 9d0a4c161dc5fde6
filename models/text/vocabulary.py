"""What a tokenizer is to those who ask it for tokens and texts: template.py, control.py, streaming.py. Knows no file and no library."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

from .named import NamedTokens
from .pieces import Pieces

if TYPE_CHECKING:
    import tokenizers


class Vocabulary(Protocol):
    """tokenizer.py's Tokenizer, whose docstrings hold here too."""

    named: NamedTokens
    pieces: Pieces
    vocab_size: int

    def encode(self, text: str, add_special: bool = False, plain: bool = False) -> list[int]: ...

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str: ...

    def piece(self, token: int, skip_special: bool = False, first: bool = False) -> bytes | None: ...

    def token(self, token_id: int) -> str: ...

    def id(self, token: str) -> int | None: ...

    def added(self) -> "Mapping[int, tokenizers.AddedToken]": ...
