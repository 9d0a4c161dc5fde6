"""A model's chat template: messages to one text, as transformers renders it. Knows Jinja's sandbox, not tokens or sessions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, nodes

from ..config import read_json
from ..encoding import EncodingError, read_text
from ..errors import PromptError, TokenizerError
from ..layout import CONFIG, TEMPLATE
from .characters import check_text
from .named import ENDS
from .sandbox import CHARS_MAX, Refusal, Sandbox
from .vocabulary import Vocabulary

TEMPLATE_BYTES_MAX = 1 << 20
ROLES = ("system", "user", "assistant", "tool")


class ChatTemplate:
    """A compiled template. Holds no state of a rendering: safe to share between threads."""

    def __init__(self, source: str, tokens: Mapping[str, str] | None = None, name: str = TEMPLATE):
        """tokens: what `bos_token` and `eos_token` stand for. Raises TokenizerError naming `name` and the line of an error."""
        self.source = source
        self._tokens = dict(tokens or {})
        self._name = name
        try:
            self._program = Sandbox().program(source)
        except TemplateSyntaxError as error:
            raise TokenizerError(f"{name} line {error.lineno}: {_line(error)}; {_REMEDY}") from None
        except Exception as error:  # a template is a program from outside: compiling it may fail in any way
            raise TokenizerError(f"{name} cannot be compiled ({_line(error)}); {_REMEDY}") from None

    @classmethod
    def load(cls, folder: Path, tokenizer: Vocabulary) -> "ChatTemplate | None":
        """Read `folder/chat_template.jinja`; None if there is none. `bos_token`, `eos_token` and other names of tokens
        are what tokenizer_config.json says; in a folder without it, what config.json's ids say.

        Raises TokenizerError (unreadable, over 1 MB, not UTF-8, not a template, a token the tokenizer does not have)
        or ModelFileError (config.json is no JSON), naming the file.
        """
        file = folder / TEMPLATE
        if not file.exists():
            return None
        try:
            size = file.stat().st_size
            if size > TEMPLATE_BYTES_MAX:
                raise TokenizerError(f"{file} has {size} bytes, more than the {TEMPLATE_BYTES_MAX} allowed; {_REMEDY}")
            source = read_text(file)
        except EncodingError as error:
            raise TokenizerError(f"{file} {error}; {_REMEDY}") from None
        except OSError as error:
            raise TokenizerError(f"cannot read {file}: {error.strerror or error}; check its permissions") from None
        return cls(source, _tokens(folder, tokenizer), str(file))

    def literals(self) -> str:
        """The texts that stand in the template, joined by NUL."""
        tree = Sandbox().parse(self.source)
        found = {node.data for node in tree.find_all(nodes.TemplateData)}
        found |= {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
        return "\0".join(sorted(found))

    def render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False, **extra: Any) -> str:
        """The text of a conversation; with add_generation_prompt, up to where the assistant's answer begins.

        messages: each with `role` (system, user, assistant or tool) and `content` (text); further keys reach the
        template. `extra`: further variables (`tools`, `enable_thinking`, ...). Raises PromptError naming a message
        that is not of that form, and TokenizerError when the template refuses the conversation, fails, reaches for
        what the sandbox forbids, or runs away (more than a million steps, ten seconds, or a text more than 1 MB
        longer than eight times what went in).
        """
        size = check_messages(messages) + len(str(extra))
        values = {"tools": None, "documents": None, **self._tokens, **extra}
        values |= {"messages": [dict(m) for m in messages], "add_generation_prompt": add_generation_prompt}
        try:
            return Sandbox(CHARS_MAX + 8 * size).run(self._program, values)
        except Refusal as error:
            raise TokenizerError(f"{self._name} refuses the conversation: {_line(error)}") from None
        except RecursionError:
            raise TokenizerError(f"{self._name} failed: it calls itself without end; {_REMEDY}") from None
        except (TemplateError, MemoryError, Exception) as error:  # as above: what it may raise has no bounds
            raise TokenizerError(f"{self._name} failed: {_line(error)}; {_REMEDY}") from None


_REMEDY = "use another template or convert the model again"


def check_messages(messages: Sequence[Mapping[str, Any]]) -> int:
    """Characters in all messages. Raises PromptError naming the first message that is not a role and a text."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise PromptError(f"messages must be a list of messages, not {type(messages).__name__}")
    size = 0
    for i, m in enumerate(messages):
        if not isinstance(m, Mapping):
            raise PromptError(f"messages[{i}] must have a role and a content, not be {type(m).__name__}")
        role, content = m.get("role"), m.get("content")
        if role not in ROLES:
            raise PromptError(f"messages[{i}].role {role!r} must be one of {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise PromptError(f"messages[{i}].content must be text, not {type(content).__name__}")
        check_text(content, f"messages[{i}].content")
        size += len(str(m)) if len(m) > 2 else len(content)
    return size


def _tokens(folder: Path, tokenizer: Vocabulary) -> dict[str, str]:
    """The tokens a template may name. Without a tokenizer_config.json, `bos_token` and `eos_token` by config.json's ids; of several ends the
    first. What is not named stays undefined."""
    file = folder / CONFIG
    named = tokenizer.named
    config = read_json(file) if file.exists() and not named.complete else {}
    found = named.variables()
    for name in ENDS:
        if name in named.names:
            continue
        ids = config.get(f"{name}_id") if isinstance(config, dict) else None
        first = next(iter(ids), None) if isinstance(ids, list) else ids
        if first is None:
            continue
        if not isinstance(first, int) or isinstance(first, bool):
            raise TokenizerError(f"{file}: {name}_id {first!r} must be a token id: correct it or convert the model again")
        try:
            found[name] = tokenizer.token(first)
        except TokenizerError as error:
            raise TokenizerError(f"{file}: {name}_id: {error}: the two files are not of one model") from None
    return found


def _line(error: BaseException) -> str:
    """An error as one short line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + "..."
