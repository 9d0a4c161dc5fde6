"""How a chat template puts single turns, for training texts that are put together turn by turn: as a session puts them. Knows templates; no tokens."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from ..layout import TEMPLATE
from ..text.dialogue import MARK, OPENING, Dialogue, Template
from ..text.template import ChatTemplate
from .plan import TrainError

LLAMA = {"bos_token": "<s>", "eos_token": "</s>"}
_PROBES = (MARK, "Where is it? In the shed, I think.")


class Turns(NamedTuple):
    """head: what begins every conversation. opening: what an answer begins with. wrap(role, content): a turn as it stands after others."""

    head: str
    opening: str
    wrap: Callable[[str, str], str]


def chat_turns(template: str | Template, tokens: Mapping[str, str] = LLAMA, name: str = TEMPLATE) -> Turns:
    """The turns of a chat template, as `Dialogue` renders them for a session: head, a user's turn, opening, answer, and what closes it, one
    after the other, are the session's text.

    template: a model's, or the source of one, with `tokens` for the tokens it names. `name` is what errors call it. Raises TrainError where
    turns one by one are not the conversation (numbered turns, say), and TokenizerError where the template refuses a plain conversation.
    """
    made: Template = ChatTemplate(template, tokens, name) if isinstance(template, str) else template
    dialogue = Dialogue(made)
    head, opening = dialogue.head(), _opening(dialogue, name)
    for probe in _PROBES:
        if dialogue.turn(probe, first=True) != head + dialogue.turn(probe, first=False):
            raise _refused(name, "puts a first turn in another way than later ones")

    def shown(role: str, content: str) -> str:
        before = [*OPENING, OPENING[0]] if role == "assistant" else [*OPENING]
        past, whole = made.render(before), made.render([*before, {"role": role, "content": content}])
        if not past or not whole.startswith(past):
            raise _refused(name, f"does not put the {role}'s turn after those before it")
        return whole[len(past) :]

    before, found, after = shown("assistant", MARK).partition(MARK)
    if not found or after != dialogue.close():
        raise _refused(name, "does not put an answer as it is, or closes a first one in another way than later ones")

    def wrap(role: str, content: str) -> str:
        text = shown(role, content)
        # Where the turn of an answer does not begin as its opening says, a session's has the opening: the model answers after it.
        return opening + text[len(before) :] if role == "assistant" and not before.startswith(opening) else text

    return Turns(head, opening, wrap)


def _opening(dialogue: Dialogue, name: str) -> str:
    """What follows a user's turn where an answer begins, whatever was said."""
    found = set()
    for probe in _PROBES:
        asked, alone = dialogue.turn(probe, first=False), dialogue.later([{"role": "user", "content": probe}], generate=False)
        if alone is None or not asked.startswith(alone):
            raise _refused(name, "does not put turns one after the other")
        found.add(asked[len(alone) :])
    if len(found) != 1:
        raise _refused(name, "opens answers in different ways")
    return found.pop()


def _refused(name: str, what: str) -> TrainError:
    return TrainError(f"{name} {what}, so a chat would read another text than training: use another template for --task chat")
