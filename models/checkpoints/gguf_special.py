"""Which tokens of a GGUF vocabulary are matched whole, and which of them end a reply, whatever type the file gives them.

Files say so by a token's type, and many say NORMAL of what is none: such a token would be cut into pieces, and the model would never see
the mark it was trained with. So a token also counts by what names it: the metadata's ids, the ends of turns that llama.cpp knows by name,
and the chat template. A word that the vocabulary puts together of smaller pieces is never taken for a mark because of how it looks.
"""

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from ..errors import ConvertError
from .gguf_header import GGUFHeader

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
NAMED = ("eos_token_id", "eot_token_id", "eom_token_id")
# Names of tokens that end a turn and nothing else, in the releases that use them.
END_TEXTS = (
    "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|eot|>", "<|end_of_turn|>", "<|endofturn|>", "<end_of_turn>",
    "<end_of_utterance>", "<EOT>",
)  # fmt: skip
_BARRED = re.compile(r"<[|｜][^\s<>]+[|｜]>")
_BRACKETED = re.compile(r"<+[^\s<>]+>+|\[[^\s\[\]]+\]")
# Where a template has written a message: the end of the expression that begins with `content`, and blanks of the template's own.
_AFTER_CONTENT = re.compile(
    r"content\b['\"]?(?:\s*\])?(?:\.\w+\(\))*[\s)]*(?:\|\s*\w+[\s()]*)*(?:[+~]\s*['\"]|-?\}\})(?:\s|\\n|\{%[^%]*%\})*"
)


def special_tokens(header: GGUFHeader, vocab: Mapping[str, int], kinds: Sequence[int], made: Set[str]) -> dict[str, bool]:
    """Tokens to match whole, by text, and whether each is special (left out of what people read). made: what merges can put together."""
    template = chat_template(header) or ""
    named = {header.metadata.get(f"tokenizer.ggml.{key}") for key in (*NAMED, "bos_token_id")}
    out: dict[str, bool] = {}
    for token, i in vocab.items():
        whole = len(token) > 1 and token not in made
        mark = token in END_TEXTS or (whole and i in named)
        if kinds[i] in (CONTROL, UNKNOWN) or mark:
            out[token] = True
        elif kinds[i] == USER_DEFINED:
            out[token] = False
        elif kinds[i] != BYTE and whole and (_BARRED.fullmatch(token) or (token in template and _BRACKETED.fullmatch(token))):
            out[token] = True
    return out


def end_of_turn_ids(header: GGUFHeader, path: Path, vocab_size: int) -> list[int]:
    """Ids that end a reply: eos, end of turn and end of message as the metadata names them, what the chat template writes after a message,
    and tokens known by name where the metadata names no end of turn or the template writes them. Raises ConvertError for an id that is none.
    """
    ids: list[int] = []
    for key in (*NAMED, "bos_token_id"):
        value = header.metadata.get(f"tokenizer.ggml.{key}")
        if value is None:
            continue
        if type(value) is not int or not 0 <= value < vocab_size:
            raise ConvertError(
                f"{path}: tokenizer.ggml.{key} {value!r} must be a token id below {vocab_size}: convert the model to GGUF again"
            )
        if key != "bos_token_id":
            ids.append(value)
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list):
        return list(dict.fromkeys(ids))
    template = chat_template(header) or ""
    silent = "tokenizer.ggml.eot_token_id" not in header.metadata
    texts = [text for text in END_TEXTS if silent or text in template]
    ids += [tokens.index(text) for text in (*texts, *_written_after_messages(template, tokens)) if text in tokens]
    return list(dict.fromkeys(ids))


def chat_template(header: GGUFHeader) -> str | None:
    """The file's chat template, or None."""
    template: Any = header.metadata.get("tokenizer.chat_template")
    return template if isinstance(template, str) and template else None


def _written_after_messages(template: str, tokens: list[str]) -> Iterator[str]:
    """Marks in angle brackets that the template writes right after a message. (Those in square brackets, as in `[/INST]`, begin a reply.)"""
    marks = {t for t in tokens if isinstance(t, str) and t.startswith("<") and _BRACKETED.fullmatch(t) and t in template}
    for place in _AFTER_CONTENT.finditer(template):
        found = [mark for mark in marks if template.startswith(mark, place.end())]
        if found:
            yield max(found, key=len)
