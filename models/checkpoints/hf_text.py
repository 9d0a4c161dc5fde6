"""The text side of a Hugging Face folder: tokenizer.json, what stands beside it of its tokens, and the chat template.

Knows where each may be written and which of two places counts: transformers' order. What tokenizer_config.json says of the tokens is put into
the tokenizer.json that the model folder gets, so that whoever opens it has the same tokens; names of tokens go into the folder's
tokenizer_config.json and its ids.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..encoding import EncodingError, decode, without_mark
from ..errors import ConvertError, TokenizerError
from ..fields import is_whole
from ..layout import CONFIG, TEMPLATE, TOKENIZER, TOKENIZER_CONFIG
from ..text.library import open_library
from ..text.named import ENDS, NamedTokens, add_around, apply, read_named
from .source import check_tokenizer, read_limited, read_object

TEMPLATE_BYTES_MAX = 1 << 20
TEMPLATES = "additional_chat_templates"
PROCESSOR = "chat_template.json"


@dataclass(frozen=True)
class HFText:
    """tokenizer: bytes of a tokenizer.json, None without one. config: the model folder's tokenizer_config.json. ids: the Llama fields
    `bos_token_id` and `eos_token_id`, where the tokenizer says more than the source's config."""

    tokenizer: bytes | None = None
    config: Mapping[str, Any] | None = None
    ids: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read(folder: Path, llama: Mapping[str, Any], template: str | None) -> HFText:
    """Read the tokenizer of a folder. llama: its Llama fields. Raises ConvertError naming the file and the remedy: malformed, ids past the
    vocabulary, a named token that is not there."""
    file = folder / TOKENIZER
    if not file.is_file():
        also = " (tokenizer.model alone is not read)" if (folder / "tokenizer.model").is_file() else ""
        return HFText(notes=(f"the source has no tokenizer.json{also}: the model takes token ids only",))
    data, vocab = _unmarked(file), llama.get("vocab_size")
    if not isinstance(vocab, int) or not is_whole(vocab):
        raise ConvertError(f"{folder / CONFIG}: vocab_size {vocab!r} must be a positive whole number: correct the file")
    check_tokenizer(data, file, vocab)
    try:
        named = read_named(folder)
        library = open_library(data, str(file))
        changed = [apply(named, library, str(file), template or ""), add_around(named, library)]
    except TokenizerError as error:
        raise ConvertError(str(error)) from None
    if any(changed):
        data = library.to_str(pretty=False).encode("utf-8")
        check_tokenizer(data, folder / TOKENIZER_CONFIG, vocab)
    if not named.said:
        return HFText(data)
    names = _names(named, llama, library.id_to_token)
    ids = {name: library.token_to_id(text) for name in ENDS if (text := named.names.get(name))}
    fields: dict[str, Any] = {}
    if "bos_token" in ids:
        fields["bos_token_id"] = ids["bos_token"]
    if "eos_token" in ids:
        fields["eos_token_id"] = list(dict.fromkeys([ids["eos_token"], *llama["eos_token_id"]]))
    return HFText(data, names, fields)


def _unmarked(file: Path) -> bytes:
    try:
        return without_mark(read_limited(file))
    except EncodingError as error:
        raise ConvertError(f"{file} {error}: save it as UTF-8, or restore the file") from None


def chat_template(folder: Path) -> str | None:
    """The chat template, or the one called `default` of several: chat_template.jinja, additional_chat_templates/, tokenizer_config.json,
    chat_template.json. Raises ConvertError where there are several and none is the default."""
    if (folder / TEMPLATE).is_file():
        return _template_file(folder / TEMPLATE)
    if (folder / TEMPLATES / "default.jinja").is_file():
        return _template_file(folder / TEMPLATES / "default.jinja")
    for name in (TOKENIZER_CONFIG, PROCESSOR):
        file = folder / name
        value = read_object(file, 32 << 20).get("chat_template") if file.is_file() else None
        if isinstance(value, list) and all(isinstance(t, dict) for t in value):
            value = {t.get("name"): t.get("template") for t in value} or None
        if isinstance(value, dict):
            value = value["default"] if "default" in value else _no_default(file, "chat_template", value)
        if value is not None and not isinstance(value, str):
            raise ConvertError(f"{file}: chat_template must be text or a list of named texts, not {type(value).__name__}: restore the file")
        if value:
            return value
    others = sorted(file.stem for file in (folder / TEMPLATES).glob("*.jinja"))
    return _no_default(folder / TEMPLATES, "the folder", others) if others else None


def _no_default(where: Path, what: str, named: Any) -> Any:
    names = sorted(map(str, named))
    raise ConvertError(f"{where}: {what} has {names} but none called 'default': put the one to use in chat_template.jinja")


def _template_file(file: Path) -> str | None:
    try:
        return decode(read_limited(file, TEMPLATE_BYTES_MAX)) or None
    except EncodingError as error:
        raise ConvertError(f"{file} {error}: save it as UTF-8, or restore the file") from None


def _names(named: NamedTokens, llama: Mapping[str, Any], token: Any) -> dict[str, str | None]:
    """Every name with its text; the beginning and the end always, by the Llama fields' ids where the tokenizer's class has some of its own."""
    out = {name: named.names.get(name) for name in ENDS} | dict(named.names)
    for name in ENDS:
        value = llama.get(f"{name}_id")
        first = next(iter(value), None) if isinstance(value, list) else value
        if name not in named.names and not named.complete and isinstance(first, int) and first >= 0:
            out[name] = token(first)
    return out
