"""Text to token ids and back, from a model folder's tokenizer.json. Knows no model and no chat template.

Encoding is the `tokenizers` library's. Decoding is the project's own (pieces.py, streaming.py), so that a streamed
text and a whole one cannot differ. It equals the library's except where the bytes are no UTF-8, and in non-ASCII
added tokens, which the library garbles.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..models.errors import PromptError, TokenizerError
from ..models.layout import TOKENIZER
from ..models.tokens import check_vocabulary, refusals
from .pieces import read_decoder
from .streaming import Detokenizer

if TYPE_CHECKING:
    import tokenizers

TOKENIZER_BYTES_MAX = 64 << 20
BLOCK_CHARS = 1 << 18
_CONTEXT = 256
_CUT = re.compile(r"(?<=[a-z])(?= [a-z])|(?<=[a-z.]\n)(?=[A-Za-z])")


class Tokenizer:
    """A tokenizer. `sha256`: of the bytes of tokenizer.json. `pieces`: how its tokens become bytes. Safe to share between threads."""

    def __init__(self, data: bytes, name: str = TOKENIZER):
        """From the content of a tokenizer.json; `name` is what errors call it. Truncation and padding saved in it are
        off.

        Raises TokenizerError for anything that is not a tokenizer, or decodes in a way this version does not know.
        """
        self.sha256 = hashlib.sha256(data).hexdigest()
        self._data = data
        self._name = name
        self._library = self._open()
        self._plain: tokenizers.Tokenizer | None = None
        try:
            self.pieces = read_decoder(json.loads(data).get("decoder"))
        except TokenizerError as error:
            raise TokenizerError(f"{name}: {error}; give a model with another tokenizer") from None
        added = self._library.get_added_tokens_decoder()
        self._added = frozenset(added)
        self._special = frozenset(i for i, token in added.items() if token.special)
        self._before, self._after = self._around()
        self.vocab_size = 1 + max(self._library.get_vocab(with_added_tokens=True).values(), default=-1)
        """Highest id + 1. A model's own vocab_size may be larger (padded), never smaller."""

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Read `folder/tokenizer.json`. Raises TokenizerError naming the file and the remedy: missing, over 64 MB, malformed."""
        file = folder / TOKENIZER
        try:
            size = file.stat().st_size
            if size > TOKENIZER_BYTES_MAX:
                raise TokenizerError(f"{file} has {size} bytes, more than the {TOKENIZER_BYTES_MAX} allowed: it is not a tokenizer")
            data = file.read_bytes()
        except FileNotFoundError:
            raise TokenizerError(f"{file} does not exist: copy the one the model was trained with into the folder") from None
        except OSError as error:
            raise TokenizerError(f"cannot read {file}: {error.strerror or error}; check its permissions") from None
        return cls(data, str(file))

    def encode(self, text: str, add_special: bool = False, plain: bool = False) -> list[int]:
        """Ids of a text. Special tokens spelled out in it, such as `<|im_end|>`, become their ids, unless `plain`.

        add_special: with what the tokenizer's post-processor puts around a text (usually a BOS in front).
        A text longer than 256 K characters is encoded in blocks, cut between words and only where the library gives
        the same ids for both sides as for the whole around the cut. Memory then stays small; time is linear in any
        case. A text without such a place (10 MB without a blank) is encoded whole, which takes some 150 bytes of
        memory a character. Raises PromptError, with the position, for half of a surrogate pair; NUL is text like any
        other.
        """
        check_text(text)
        library = self._spelled_out() if plain else self._library
        ids = list(self._before) if add_special else []
        begin = 0
        while begin < len(text):
            end = self._safe_cut(library, text, begin + BLOCK_CHARS)
            ids += self._ids(library, text[begin:end])
            begin = end
        return ids + list(self._after) if add_special else ids

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """The text of ids. Ids the tokenizer does not have add nothing. Special tokens appear as they are spelled unless skipped."""
        words = Detokenizer(self, skip_special)
        return "".join([words.add(i) for i in ids]) + words.flush()

    def piece(self, token: int, skip_special: bool = False, first: bool = False) -> bytes | None:
        """Bytes of one token, `first` in its text or not; None if it adds nothing."""
        if not 0 <= token < self.vocab_size or (skip_special and token in self._special):
            return None
        name = self._library.id_to_token(token)
        return None if name is None else self.pieces.piece(name, token in self._added, first)

    def token(self, token_id: int) -> str:
        """How the vocabulary spells an id. Raises TokenizerError for an id it does not have."""
        name = self._library.id_to_token(token_id) if 0 <= token_id < self.vocab_size else None
        if name is None:
            raise TokenizerError(f"{self._name} has no token {token_id} (its ids go from 0 to {self.vocab_size - 1})")
        return name

    def id(self, token: str) -> int | None:
        """The id of a token as the vocabulary spells it, or None."""
        found: int | None = self._library.token_to_id(token)
        return found

    def _open(self) -> "tokenizers.Tokenizer":
        import tokenizers

        def fail(said: str) -> TokenizerError:
            return TokenizerError(
                f"{self._name} is not a tokenizer.json this version can read ({said}): restore the file or convert the model again"
            )

        with refusals(fail):
            library = tokenizers.Tokenizer.from_buffer(self._data)
            library.no_truncation()
            library.no_padding()
            check_vocabulary(self._data)
            return library

    def _spelled_out(self) -> "tokenizers.Tokenizer":
        """A second instance, made when first needed, that takes special tokens in a text for ordinary text."""
        if self._plain is None:
            library = self._open()
            library.encode_special_tokens = True
            self._plain = library
        return self._plain

    def _around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What the post-processor puts before and after a text."""
        bare = self._ids(self._library, "a")
        full = self._ids(self._library, "a", add_special=True)
        for at in range(len(full) - len(bare) + 1):
            if full[at : at + len(bare)] == bare:
                return tuple(full[:at]), tuple(full[at + len(bare) :])
        raise TokenizerError(f"{self._name}: its post_processor changes a text's own tokens, which is not supported: use another model")

    def _safe_cut(self, library: "tokenizers.Tokenizer", text: str, target: int) -> int:
        """First place from `target` on where the text can be cut without changing ids: between words, and tried out around the cut."""
        at = target
        while len(text) - at > _CONTEXT:
            found = _CUT.search(text, at)
            if found is None or len(text) - found.start() <= _CONTEXT:
                break
            cut = found.start()
            left, right = text[cut - _CONTEXT : cut], text[cut : cut + _CONTEXT]
            if self._ids(library, left + right) == self._ids(library, left) + self._ids(library, right):
                return cut
            at = cut + BLOCK_CHARS // 64
        return len(text)

    def _ids(self, library: "tokenizers.Tokenizer", text: str, add_special: bool = False) -> list[int]:
        def fail(said: str) -> TokenizerError:
            return TokenizerError(f"{self._name} cannot encode {text[:20]!r} ({said}): restore the file or convert the model again")

        with refusals(fail):
            ids: list[int] = library.encode(text, add_special_tokens=add_special).ids
            return ids


def check_text(text: str, what: str = "the text") -> None:
    """Raise PromptError, naming `what` and the position, if `text` has half of a surrogate pair: it stands for no character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(
            f"{what} has half of a surrogate pair (U+{ord(text[error.start]):04X}) at character {error.start}: remove it or decode "
            "the input as UTF-8"
        ) from None
