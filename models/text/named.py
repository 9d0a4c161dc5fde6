"""What the files beside a tokenizer.json say of its tokens: which one begins and ends a text, which are special, how they are matched.

Knows tokenizer_config.json, special_tokens_map.json and added_tokens.json, in Hugging Face's spellings (a token is a text, an object with
`content`, or null). What they say is applied to the library's object as transformers applies it. Knows no template.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import read_json
from ..errors import ModelFileError, TokenizerError
from ..layout import TOKENIZER_CONFIG

if TYPE_CHECKING:
    import tokenizers

SPECIAL_MAP = "special_tokens_map.json"
ADDED = "added_tokens.json"
BYTES_MAX = 32 << 20
STANDARD = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
ENDS = ("bos_token", "eos_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_LLAMA = ("LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer", "CodeLlamaTokenizerFast")
Token = Mapping[str, Any]  # content, and those of _FLAGS that were given


@dataclass(frozen=True)
class NamedTokens:
    """names: token names with their texts, None where a file says there is none. tokens: all that must be matched as they say: (where it is
    written, its id there or None, the token, whether it is special by its name). add: what `add_bos_token` and `add_eos_token` say.
    said: whether there was a file at all; complete: whether a name that is not in it has no token.
    """

    names: Mapping[str, str | None] = field(default_factory=dict)
    tokens: tuple[tuple[str, int | None, Token, bool], ...] = ()
    add: Mapping[str, bool] = field(default_factory=dict)
    said: bool = False
    complete: bool = False

    def variables(self) -> dict[str, str]:
        """The names a chat template may use, each with its text."""
        return {name: text for name, text in self.names.items() if text is not None}


def read_named(folder: Path) -> NamedTokens:
    """Read the files of a folder that are there. Raises TokenizerError naming the file, the field and the value that is no token."""
    file = folder / TOKENIZER_CONFIG
    config = _object(file)
    decoder = config.get("added_tokens_decoder")
    entries: list[tuple[str, int | None, Token]] = [*_numbered(file, decoder)] if decoder is not None else []
    entries += [(f"{folder / ADDED}: {text!r}", i, {"content": text}) for text, i in _pairs(folder / ADDED)]
    known = {token["content"]: token for _, _, token in entries}
    special = folder / SPECIAL_MAP
    more = _object(special)
    # transformers lets the map overrule the configuration, except where that lists its added tokens itself.
    first, last = ((file, config), (special, more)) if decoder is None else ((special, more), (file, config))
    names: dict[str, str | None] = {}
    tokens: dict[str, tuple[str, Token]] = {}
    for where, fields in (first, last):
        for name, value in _names(fields):
            token = _token(value, f"{where}: {name}")
            names[name] = None if token is None else token["content"]
            tokens[name] = (f"{where}: {name}", token or {})
        for at, token in _extra(where, fields):
            tokens[f"{where} {token['content']}"] = (at, token)
    special_ones = [(at, None, known.get(t["content"], t), True) for at, t in tokens.values() if t.get("content")]
    add = {name: config[f"add_{name}"] for name in ENDS if isinstance(config.get(f"add_{name}"), bool)}
    said = file.is_file() or special.is_file()
    complete = said and config.get("tokenizer_class") not in _LLAMA
    return NamedTokens(names, (*((at, i, t, False) for at, i, t in entries), *special_ones), add, said, complete)


def apply(named: NamedTokens, library: "tokenizers.Tokenizer", tokenizer: str, used: str = "") -> bool:
    """Make `library` match the named tokens as transformers does; whether that changed it. used: the template's source.

    Raises TokenizerError for a token that `tokenizer` does not have or has under another id, unless nothing can ever ask for it: one
    that is named for other purposes (padding, say), not mentioned in the template.
    """
    from tokenizers import AddedToken

    before = _state(library)
    listed = {t.content: t for t in library.get_added_tokens_decoder().values()}
    for where, number, token, special in named.tokens:
        text, have = token["content"], library.token_to_id(token["content"])
        if have is None and number is None:
            name = where.rpartition(": ")[2]
            if name in STANDARD and name not in ENDS and name not in used:
                continue
            raise TokenizerError(f"{where} is {text!r}, which {tokenizer} does not have: the two files are not of one model")
        flags, own = {k: token[k] for k in _FLAGS if k in token}, listed.get(text)
        if special:  # how it is matched is said here only where no list of added tokens says so
            flags = {} if own else {"normalized": False, **flags}
        want = dict.fromkeys(("single_word", "lstrip", "rstrip"), False) | flags if flags else {}
        want |= {"special": True} if special else {}
        if own is None or any(getattr(own, flag) != value for flag, value in want.items()):
            made = AddedToken(text, **want) if flags or own is None else own
            add = library.add_special_tokens if special else library.add_tokens
            add([made])
            listed = {t.content: t for t in library.get_added_tokens_decoder().values()}
        got = library.token_to_id(text)
        if number is not None and got != number:
            raise TokenizerError(f"{where} has id {number}, {tokenizer} gives {text!r} id {got}: the two files are not of one model")
    return _state(library) != before


def add_around(named: NamedTokens, library: "tokenizers.Tokenizer") -> bool:
    """Where the tokenizer.json has no post-processor, one that puts in what `add_bos_token` and `add_eos_token` ask for; whether it did.
    A post-processor that is there counts, as in transformers."""
    from tokenizers import processors

    marks = {name: named.names.get(name) for name, wanted in named.add.items() if wanted}
    found = {name: (text, library.token_to_id(text)) for name, text in marks.items() if text}
    if library.post_processor is not None or not found:
        return False
    before, after = ([found[name][0]] if name in found else [] for name in ENDS)
    library.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, *before, "$B", *after],
        special_tokens=list(dict.fromkeys(found.values())),
    )
    return True


def _state(library: "tokenizers.Tokenizer") -> dict[int, tuple[Any, ...]]:
    added = library.get_added_tokens_decoder()
    return {i: (t.content, *(getattr(t, flag) for flag in _FLAGS)) for i, t in added.items()}


def _names(fields: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Token names and their values: the standard ones, and a model's own (`image_token`, say)."""
    for name, value in fields.items():
        if name in STANDARD or (name.endswith("_token") and isinstance(value, (str, Mapping))):
            yield name, value
    own = fields.get("extra_special_tokens")
    if isinstance(own, Mapping):
        yield from own.items()


def _extra(where: Path, fields: Mapping[str, Any]) -> Iterator[tuple[str, Token]]:
    for name in ("extra_special_tokens", "additional_special_tokens"):
        value = fields.get(name)
        if value is None or isinstance(value, Mapping):
            continue
        if not isinstance(value, list):
            raise TokenizerError(f"{where}: {name} must be a list of tokens, not {type(value).__name__}: restore the file")
        for i, x in enumerate(value):
            token = _token(x, f"{where}: {name}[{i}]")
            if token and token["content"]:
                yield f"{where}: {name}[{i}]", token


def _numbered(where: Path, decoder: Any) -> Iterator[tuple[str, int, Token]]:
    if not isinstance(decoder, Mapping):
        raise TokenizerError(f"{where}: added_tokens_decoder must map ids to tokens, not be {type(decoder).__name__}: restore the file")
    found = []
    for key, value in decoder.items():
        at = f"{where}: added_tokens_decoder[{key}]"
        token = _token(value, at)
        if not str(key).isascii() or not str(key).isdigit() or not isinstance(value, Mapping) or not token or not token["content"]:
            raise TokenizerError(f"{at} {_short(value)} must be an id and an object with content: restore the file")
        found.append((int(key), at, token))
    for number, at, token in sorted(found, key=lambda x: x[0]):
        yield at, number, token


def _pairs(file: Path) -> list[tuple[str, int]]:
    """Texts and ids of an added_tokens.json, by id."""
    pairs = list(_object(file).items())
    for text, number in pairs:
        if not text or not isinstance(number, int) or isinstance(number, bool):
            raise TokenizerError(f"{file}: {text!r} {_short(number)} must be a token and its id: restore the file")
    return sorted(pairs, key=lambda pair: pair[1])


def _token(value: Any, where: str) -> Token | None:
    if value is None:
        return None
    if isinstance(value, str):
        return {"content": value}
    flags = isinstance(value, Mapping) and all(isinstance(value.get(flag, False), bool) for flag in _FLAGS)
    if flags and isinstance(value.get("content"), str):
        return value
    raise TokenizerError(f"{where} {_short(value)} must be a token (text, or an object with content) or null: restore the file")


def _object(file: Path) -> Mapping[str, Any]:
    """A JSON object; an empty one where there is no file."""
    if not file.is_file():
        return {}
    try:
        value = read_json(file, BYTES_MAX)
    except ModelFileError as error:
        raise TokenizerError(str(error)) from None
    if not isinstance(value, dict):
        raise TokenizerError(f"{file} must hold a JSON object, not {type(value).__name__}: restore the file")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "..."
