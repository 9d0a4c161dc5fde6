"""Text to token ids and back, from a model folder's tokenizer.json and what stands beside it (named.py). Knows no model.

Encoding is the `tokenizers` library's. Decoding is the project's own (pieces.py, streaming.py), so that a streamed
text and a whole one cannot differ. It equals the library's except where the bytes are no UTF-8, and in non-ASCII
added tokens, which the library garbles.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..encoding import EncodingError, without_mark
from ..errors import PromptError, TokenizerError
from ..layout import TEMPLATE, TOKENIZER
from .characters import check_text
from .library import check_places, ids_of, open_library, refusals
from .named import NamedTokens, add_around, apply, read_named
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

    def __init__(
        self,
        data: bytes,
        name: str = TOKENIZER,
        named: NamedTokens | None = None,
        used: str = "",
        control: "Callable[[Tokenizer], Iterable[int]] | None" = None,
    ):
        """From the content of a tokenizer.json; `name` is what errors call it. Truncation and padding saved in it are
        off.

        named: what the files beside it say of its tokens; used: the chat template they are named for. control: finds,
        when first asked, ids besides the special tokens' that no message may spell (control.py).
        Raises TokenizerError for anything that is not a tokenizer, decodes in a way this version does not know, or
        does not have a named token.
        """
        self.sha256 = hashlib.sha256(data).hexdigest()
        try:
            self.data = data = without_mark(data)
        except EncodingError as error:
            raise TokenizerError(f"{name} {error}: save it as UTF-8, or restore the file") from None
        self.named = named or NamedTokens()
        self._name, self._used, self._find_control = name, used, control
        self._library = self._open()
        spec = json.loads(data)
        check_places(self._library, spec, name)
        try:
            self.pieces = read_decoder(spec.get("decoder"))
        except TokenizerError as error:
            raise TokenizerError(f"{name}: {error}; give a model with another tokenizer") from None
        with self._refusals("a"):
            self._begin, self._end, self.begin = self._around()
        added = self._library.get_added_tokens_decoder()
        self._added = frozenset(added)
        self._special = frozenset(i for i, token in added.items() if token.special)
        self._unknown = _unknown(spec["model"])
        self.vocab_size = 1 + max(self.vocabulary().values(), default=-1)
        """Highest id + 1. A model's own vocab_size may be larger (padded), never smaller."""
        if max(self._begin, default=-1) >= self.vocab_size:
            put, most = max(self._begin), self.vocab_size - 1
            raise TokenizerError(f"{name}: its post_processor puts id {put} before a text, its ids end at {most}: restore the file")

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Read `folder/tokenizer.json`, and what the other files of the folder say of its tokens.

        Raises TokenizerError naming the file and the remedy: missing, over 64 MB, malformed, files that contradict one
        another.
        """
        from .control import control_ids

        file, template = folder / TOKENIZER, folder / TEMPLATE
        used = ""
        with suppress(OSError):  # what is wrong with it is the template's reader's to say
            used = template.read_bytes().decode("utf-8", "replace")
        return cls(read_tokenizer(file), str(file), read_named(folder), used, lambda made: control_ids(folder, made))

    def encode(self, text: str, add_special: bool = False, plain: bool = False) -> list[int]:
        """Ids of a text. Special tokens spelled out in it, such as `<|im_end|>`, become their ids, unless `plain`: then
        none of `control` does.

        add_special: with what the tokenizer's post-processor puts in front of a text (usually a BOS), unless the text
        brings it. What it would put behind is left out: every text here is one that goes on.
        A text longer than 256 K characters is encoded in blocks, cut between words and only where the library gives
        the same ids for both sides as for the whole around the cut. Memory then stays small; time is linear in any
        case. A text without such a place (10 MB without a blank) is encoded whole, which takes some 150 bytes of
        memory a character. Raises PromptError, with the position, for half of a surrogate pair, and for a text that
        means a control token however it is spelled; NUL is text like any other.
        """
        check_text(text)
        ids = self._spelled_out(text) if plain else self._blocks(self._library, text)
        begun = tuple(ids[: len(self._begin)]) == self._begin
        return ids if begun or not add_special else [*self._begin, *ids]

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

    def ends(self) -> frozenset[int]:
        """The id of the token that the files beside call the end of a text, if they do."""
        text = self.named.names.get("eos_token")
        found = self.id(text) if text else None
        return frozenset(() if found is None else (found,))

    def vocabulary(self) -> dict[str, int]:
        """Every token, added ones included, and its id."""
        tokens: dict[str, int] = self._library.get_vocab(with_added_tokens=True)
        return tokens

    def added(self) -> "dict[int, tokenizers.AddedToken]":
        """The tokens that are found in a text before the model's own, by id."""
        tokens: dict[int, tokenizers.AddedToken] = self._library.get_added_tokens_decoder()
        return tokens

    @cached_property
    def control(self) -> frozenset[int]:
        """Ids that only a chat template or the runtime puts in, never a message: the special tokens but the one for what
        is unknown and blanks, what the post-processor puts around a text, and those that `control` found."""
        found = self._special.union(self._begin, self._end) | set(self._find_control(self) if self._find_control else ())
        return frozenset(i for i in found if self.token(i) != self._unknown and not self.decode([i]).isspace())

    @cached_property
    def _plain(self) -> "tokenizers.Tokenizer":
        """A second instance that takes control tokens in a text for ordinary text."""
        import tokenizers

        library = self._open()
        for i, t in self.added().items():
            if i in self.control and not t.special:
                flags = {k: getattr(t, k) for k in ("single_word", "lstrip", "rstrip", "normalized")}
                library.add_special_tokens([tokenizers.AddedToken(t.content, **flags, special=True)])
        library.encode_special_tokens = True
        return library

    @cached_property
    def _controls_spelled(self) -> "re.Pattern[str]":
        """Finds the texts of control tokens, the longest first."""
        added = self.added()
        texts = {added[i].content if i in added else self.decode([i]) for i in self.control}
        return re.compile("|".join(map(re.escape, sorted(filter(None, texts), key=len, reverse=True))) or "(?!)")

    def _open(self) -> "tokenizers.Tokenizer":
        library = open_library(self.data, self._name)
        apply(self.named, library, self._name, self._used)
        add_around(self.named, library)
        return library

    def _blocks(self, library: "tokenizers.Tokenizer", text: str) -> list[int]:
        ids: list[int] = []
        begin = 0
        while begin < len(text):
            end = self._safe_cut(library, text, begin + BLOCK_CHARS)
            with self._refusals(text[begin:end]):
                ids += ids_of(library, text[begin:end])
            begin = end
        return ids

    def _refusals(self, text: str) -> AbstractContextManager[None]:
        """Around encoding: what the library raises then is the file's fault, found late."""
        remedy = "restore the file or convert the model again"
        return refusals(lambda said: TokenizerError(f"{self._name} cannot encode {text[:20]!r} ({said}): {remedy}"))

    def _spelled_out(self, text: str) -> list[int]:
        """Ids of a text in which nothing is a control token."""
        ids = self._blocks(self._plain, text)
        if self.control.isdisjoint(ids):
            return ids
        # The model's own vocabulary has one of them too: it cannot be made of the halves of its text.
        ids = [i for part in _halved(text, self._controls_spelled) for i in self._blocks(self._plain, part)]
        if not self.control.isdisjoint(ids):
            found = next(self.token(i) for i in ids if i in self.control)
            raise PromptError(f"the text means the control token {found}, however it is spelled: leave that part out")
        return ids

    def _around(self) -> tuple[tuple[int, ...], tuple[int, ...], str]:
        """What the post-processor puts before and after a text: ids, and the text that means those before."""
        library = self._library
        ways: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
        for text in ("a", "9 Z", "."):
            bare, full = ids_of(library, text), library.encode(text, add_special_tokens=True).ids
            places = [at for at in range(len(full) - len(bare) + 1) if full[at : at + len(bare)] == bare]
            found = [(tuple(full[:at]), tuple(full[at + len(bare) :])) for at in places]
            if not found:
                raise TokenizerError(f"{self._name}: its post_processor changes a text's own tokens, which is not supported: use another model")
            ways = [way for way in found if text == "a" or way in ways]  # one text may look like what stands around it
        if not ways:
            raise TokenizerError(
                f"{self._name}: its post_processor puts something else around each text, which is not supported: use another model"
            )
        begin, end = ways[0]
        tokens = [str(library.id_to_token(i)) for i in begin]
        if tuple(ids_of(library, "".join(tokens))) != begin:
            library.add_special_tokens(tokens)  # so that they can be spelled where a text begins
        return begin, end, "".join(tokens)

    def _safe_cut(self, library: "tokenizers.Tokenizer", text: str, target: int) -> int:
        """First place from `target` on where the text can be cut without changing ids: between words, and tried out around the cut."""
        at = target
        while len(text) - at > _CONTEXT:
            found = _CUT.search(text, at)
            if found is None or len(text) - found.start() <= _CONTEXT:
                break
            cut = found.start()
            left, right = text[cut - _CONTEXT : cut], text[cut : cut + _CONTEXT]
            if ids_of(library, left + right) == ids_of(library, left) + ids_of(library, right):
                return cut
            at = cut + BLOCK_CHARS // 64
        return len(text)


def read_tokenizer(file: Path) -> bytes:
    """The content of a tokenizer.json. Raises TokenizerError naming the file: missing, over 64 MB, unreadable."""
    try:
        size = file.stat().st_size
        if size > TOKENIZER_BYTES_MAX:
            raise TokenizerError(f"{file} has {size} bytes, more than the {TOKENIZER_BYTES_MAX} allowed: it is not a tokenizer")
        return file.read_bytes()
    except FileNotFoundError:
        raise TokenizerError(f"{file} does not exist: copy the one the model was trained with into the folder") from None
    except OSError as error:
        raise TokenizerError(f"cannot read {file}: {error.strerror or error}; check its permissions") from None


def _unknown(model: Mapping[str, Any]) -> str | None:
    """The token that stands for what a model's vocabulary does not have, or None."""
    at, vocab = model.get("unk_id"), model.get("vocab")
    found = vocab[at][0] if isinstance(at, int) and isinstance(vocab, list) else model.get("unk_token")
    return found if isinstance(found, str) else None


def _halved(text: str, controls: "re.Pattern[str]") -> Iterator[str]:
    """A text in pieces, cut after the first character of everything that spells a control token."""
    begin = 0
    for found in controls.finditer(text):
        yield text[begin : found.start() + 1]
        begin = found.start() + 1
    yield text[begin:]
