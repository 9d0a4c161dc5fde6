"""What a browser must know of a model's tokens and its chat template, made here so that no template runs there. Knows tokenizers and Dialogue.

A template is taken where it puts fixed texts around a message and around a system prompt, whatever they say; that is tried with texts of every kind.
"""

from collections.abc import Callable, Sequence
from typing import Any

from ..models.errors import ConvertError, LM2Error
from ..models.text.dialogue import Dialogue, Template
from ..models.text.tokenizer import Tokenizer

MARKS = {"user": "\u2060user\u2060", "system": "\u2060system\u2060"}
PROBES = (
    "Hi", " a ", "\n\tlines\nof text\n\n", "<|im_end|>", "{{ messages }}", "user: x\nAssistant: y", "<think>\nso\n</think>\n\nyes", "é\u4e2d\U0001f600 ", "[INST] x [/INST]", "\u00a0.\u3000",
    "0", "x" * 5000,
)  # fmt: skip
Part = str | dict[str, str]


def tokens_block(tokenizer: Tokenizer) -> dict[str, Any]:
    """The `text` block of web.json: added tokens with their flags, control ids, ids that begin a text, the highest id + 1."""
    flags = ("content", "special", "normalized", "single_word", "lstrip", "rstrip")
    added = [{"id": i} | {name: getattr(token, name) for name in flags} for i, token in sorted(tokenizer.added().items())]
    return {"added": added, "control": sorted(tokenizer.control), "begin": tokenizer.encode("", add_special=True), "size": tokenizer.vocab_size}


def wording_block(template: Template, end_of_turn: str, name: str) -> dict[str, Any]:
    """The `wording` block of web.json: texts around turns, without a system prompt (`bare`) and with one (`under`, None where the template refuses it).

    Raises ConvertError for a template that does more with a text than put others around it.
    """
    bare = _texts(Dialogue(template, None, end_of_turn))
    trims = {"user": _trims(lambda said: Dialogue(template, None, end_of_turn).turn(said, True)), "system": False}
    refusal, under = "", None
    try:
        under = _texts(Dialogue(template, MARKS["system"], end_of_turn))
        trims["system"] = _trims(lambda said: Dialogue(template, said, end_of_turn).turn("Hi", True))
    except LM2Error as error:
        refusal = " ".join(str(error).split()).rpartition(": ")[2][:200]
    block = {"bare": bare, "under": under, "trims": trims, "refusal": refusal}
    _check(template, end_of_turn, block, name)
    return block


def _texts(dialogue: Dialogue) -> dict[str, Any]:
    mark = MARKS["user"]
    first = dialogue.turn(mark, True)
    later = dialogue.later([{"role": "user", "content": mark}], generate=True)
    return {"first": _parts(first), "later": None if later is None else _parts(later), "closing": dialogue.close(), "head": _parts(dialogue.head())}


def _parts(text: str) -> list[Part]:
    """A text in order: what the template says, and {"said": whose} where a text of people stands."""
    out: list[Part] = []
    while True:
        places = [(text.find(mark), kind) for kind, mark in MARKS.items() if mark in text]
        if not places:
            return [*out, text]
        at, kind = min(places)
        out += [text[:at], {"said": kind}]
        text = text[at + len(MARKS[kind]) :]


def _trims(render: Callable[[str], str]) -> bool:
    """Whether a text is shown without blanks at its ends."""
    return render("  \n a \n ") == render("a")


def _check(template: Template, end: str, block: dict[str, Any], name: str) -> None:
    """Raise ConvertError unless the block's texts are what the template makes of every probe."""

    def shown(kind: str, text: str) -> str:
        return text.strip() if block["trims"][kind] else text

    def made(parts: Sequence[Part], user: str, system: str) -> str:
        said = {"user": shown("user", user), "system": shown("system", system)}
        return "".join(part if isinstance(part, str) else said[part["said"]] for part in parts)

    def refuse(what: str) -> ConvertError:
        return ConvertError(
            f"the chat template of {name} does more with {what} than put texts around it, which the browser cannot do: "
            "export it without --web, or give the model folder a simpler chat_template.jinja"
        )

    for probe in PROBES:
        for system in (None, *(PROBES if block["under"] else ())):
            texts = block["under" if system else "bare"]
            dialogue = Dialogue(template, system, end)
            for first in (True, False):
                parts = texts["first"] if first or texts["later"] is None else texts["later"]
                if dialogue.turn(probe, first) != made(parts, probe, system or ""):
                    raise refuse(f"the message {probe[:20]!r}" + (f" under the system prompt {system[:20]!r}" if system else ""))
            if dialogue.head() != made(texts["head"], "", system or "") or dialogue.close() != texts["closing"]:
                raise refuse(f"the system prompt {(system or '')[:20]!r}")
