"""Which tokens steer a conversation, so that a message must not be able to spell them. Knows a model folder's files and its template.

Besides special tokens: what begins and ends a text, and added tokens that the chat template writes or that stand in bars (`<|im_end|>`),
whether or not tokenizer.json calls them special. Other added tokens (runs of blanks, words of a domain, `<think>` where no template writes it) are vocabulary.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..config import read_json
from ..errors import LM2Error
from ..layout import CONFIG, GENERATION
from .named import ENDS
from .template import ROLES, ChatTemplate
from .vocabulary import Vocabulary

_MARKUP = re.compile(r"[<\[].+[>\]]")
_BARS = re.compile(r"<[|\uff5c].+[|\uff5c]>")


def control_ids(folder: Path, tokenizer: Vocabulary) -> set[int]:
    """Control tokens of a model folder that may not be special. Raises TokenizerError for a template that is none."""
    found = set(_ends(folder, tokenizer))
    added = {i: t.content for i, t in tokenizer.added().items() if not t.special and not t.content.isspace()}
    found |= {i for i, content in added.items() if _BARS.fullmatch(content)}
    template = ChatTemplate.load(folder, tokenizer)
    if template is None or not added:
        return found
    literals = template.literals()
    written = {i for text in _samples(template) for i in tokenizer.encode(text)}
    return found | {i for i, content in added.items() if content in literals or i in written}


def _ends(folder: Path, tokenizer: Vocabulary) -> Iterator[int]:
    """What the folder says begins or ends a text, as far as it is an added token or looks like a mark: some models end at a line's end."""
    ids: list[Any] = [tokenizer.id(text) for name in ENDS if (text := tokenizer.named.names.get(name))]
    for file in (folder / CONFIG, folder / GENERATION):
        fields = read_json(file) if file.is_file() else {}
        for name in ENDS if isinstance(fields, dict) else ():
            value = fields.get(f"{name}_id")
            ids += value if isinstance(value, list) else [value]
    for i in ids:
        known = isinstance(i, int) and 0 <= i < tokenizer.vocab_size
        if known and (i in tokenizer.added() or _MARKUP.fullmatch(tokenizer.decode([i]))):
            yield i


def _samples(template: ChatTemplate) -> Iterator[str]:
    """What the template makes of messages of every role, where it takes them: marks may be put together of pieces."""
    said = [{"role": "user", "content": "\n"}, {"role": "assistant", "content": "\n"}]
    for talk in ([], *([{"role": role, "content": "\n"}] for role in ROLES)):
        for messages in ([*talk], [*talk, *said], [*said, *talk]):
            try:
                yield template.render(messages, add_generation_prompt=not messages or messages[-1]["role"] != "assistant")
            except LM2Error:
                continue
