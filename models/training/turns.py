"""How a chat template puts single turns, for training texts that are put together turn by turn. Knows templates; no tokens."""

from collections.abc import Callable
from typing import NamedTuple


class Turns(NamedTuple):
    """head: what begins every conversation. opening: what an answer begins with. wrap(role, content): a turn as it stands after others."""

    head: str
    opening: str
    wrap: Callable[[str, str], str]


def chat_turns(template: str) -> Turns:
    """The turns of a Jinja chat template, found by rendering small conversations and taking away what they have in common."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    compiled = ImmutableSandboxedEnvironment().from_string(template)

    def render(messages: list[dict[str, str]], generate: bool = False) -> str:
        return compiled.render(messages=messages, add_generation_prompt=generate)

    hello = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    past, asked = render(hello), render(hello[:1])

    def wrap(role: str, content: str) -> str:
        before, text = (hello, past) if role == "user" else (hello[:1], asked)
        return render([*before, {"role": role, "content": content}])[len(text) :]

    again = wrap(*hello[0].values())
    return Turns(past[: past.index(again)], render(hello, True)[len(past) :], wrap)
