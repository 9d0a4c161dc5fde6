"""How a turn of a conversation becomes text: what a chat template puts around one message, whatever came before.

A chunk may begin with any turn, so turns are rendered one at a time: as the first of a chunk (system prompt included) or as a later one.
Knows templates, not tokens. A model without a template speaks plainly: `User: ...` / `Assistant:`.
"""

from collections.abc import Sequence
from typing import Protocol

from ..errors import TokenizerError

MARK = "\u2060mark\u2060"
OPENING = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"})


class Template(Protocol):
    def render(self, messages: list[dict[str, str]], add_generation_prompt: bool = False) -> str: ...


class PlainTemplate:
    """For models that come without a chat template. begin: the text of what their tokenizer puts before a text (`<s>`)."""

    def __init__(self, begin: str = ""):
        self._begin = begin

    def render(self, messages: list[dict[str, str]], add_generation_prompt: bool = False) -> str:
        lines = [m["content"] if m["role"] == "system" else f"{m['role'].capitalize()}: {m['content']}" for m in messages]
        return self._begin + "".join(line + "\n" for line in lines) + ("Assistant:" if add_generation_prompt else "")


class Dialogue:
    """Renders single turns with `template`, under an optional system prompt. Raises TokenizerError when the template refuses the turn."""

    def __init__(self, template: Template | None, system: str | None = None, end_of_turn: str = ""):
        self.template: Template = template or PlainTemplate()
        self.system = system
        self._base = [{"role": "system", "content": system}] if system else []
        self._end = end_of_turn

    def under(self, system: str) -> "Dialogue":
        """The same template under another system prompt."""
        return Dialogue(self.template, system, self._end)

    def turn(self, content: str, first: bool) -> str:
        """The user's turn and the opening of the answer; with everything a chunk begins with when `first`."""
        message = {"role": "user", "content": content}
        if not first:
            later = self.later([message], generate=True)
            if later is not None:
                return later
        return self.template.render([*self._base, message], add_generation_prompt=True)

    def close(self) -> str:
        """What follows an answer before the next turn may begin: `<|im_end|>` and a newline, say."""
        try:
            text = self.template.render([*self._base, OPENING[0], {"role": "assistant", "content": MARK}])
        except TokenizerError:
            return self._end
        return text.partition(MARK)[2] if text.count(MARK) == 1 else self._end

    def head(self) -> str:
        """What every chunk begins with: the system prompt, and any preamble of the template's own. Empty if it cannot stand alone."""
        message = {"role": "user", "content": MARK}
        later = self.later([message], generate=True)
        whole = self.template.render([*self._base, message], add_generation_prompt=True)
        return whole[: -len(later)] if later and whole.endswith(later) else ""

    def document(self, first: bool) -> tuple[str, str]:
        """What goes before and after a document that is read as the user's message and not answered."""
        message = {"role": "user", "content": MARK}
        text = None if first else self.later([message], generate=False)
        if text is None:
            text = self.template.render([*self._base, message])
        before, found, after = text.partition(MARK)
        return (before, after) if found else ("", "")

    def later(self, messages: Sequence[dict[str, str]], generate: bool) -> str | None:
        """`messages` as they read after earlier turns, or None if the template does not simply append."""
        try:
            past = self.template.render([*self._base, *OPENING])
            whole = self.template.render([*self._base, *OPENING, *messages], add_generation_prompt=generate)
        except TokenizerError:
            return None
        return whole[len(past) :] if past and whole.startswith(past) else None
