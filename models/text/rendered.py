"""Rendered text to token ids, so that what people said in it stays what they said. Knows tokenizers and Dialogue, no model.

Template and messages are encoded together, as in training, wherever the control tokens (control.py) are then those of the template. Where a
message spells one, or makes one with what stands beside it, the template's parts and the messages are encoded apart.
"""

import re
from collections.abc import Callable, Sequence

from ..errors import TokenizerError
from .dialogue import Dialogue
from .tokenizer import Tokenizer

Render = Callable[..., str]


def encode_turn(tokenizer: Tokenizer, dialogue: Dialogue, content: str, first: bool) -> list[int]:
    """Ids of `dialogue.turn(content, first)`. Raises as `encode_rendered` and `turn` do."""
    if not dialogue.system:
        return encode_rendered(tokenizer, lambda said: dialogue.turn(said, first), (content,))
    return encode_rendered(tokenizer, lambda system, said: dialogue.under(system).turn(said, first), (dialogue.system, content))


def encode_head(tokenizer: Tokenizer, dialogue: Dialogue) -> list[int]:
    """Ids of `dialogue.head()`."""
    if not dialogue.system:
        return tokenizer.encode(dialogue.head())
    return encode_rendered(tokenizer, lambda system: dialogue.under(system).head(), (dialogue.system,))


def encode_document(tokenizer: Tokenizer, dialogue: Dialogue, first: bool) -> tuple[list[int], list[int]]:
    """Ids of what goes before and after a document (`dialogue.document`)."""
    if not dialogue.system:
        before, after = dialogue.document(first)
        return tokenizer.encode(before), tokenizer.encode(after)
    sides = (lambda system: dialogue.under(system).document(first)[0], lambda system: dialogue.under(system).document(first)[1])
    before_ids, after_ids = (encode_rendered(tokenizer, side, (dialogue.system,)) for side in sides)
    return before_ids, after_ids


def encode_rendered(tokenizer: Tokenizer, render: Render, said: Sequence[str]) -> list[int]:
    """Ids of `render(*said)`, in which no text of `said` has become a control token.

    Raises TokenizerError where the template changes texts so that it cannot be told whose a control token is, PromptError for one that
    means a control token however it is spelled.
    """
    text, marks = render(*said), _marks(len(said))
    ids, control = tokenizer.encode(text), tokenizer.control

    def steering(ids: Sequence[int]) -> list[int]:
        return [i for i in ids if i in control]

    if steering(ids) == steering(tokenizer.encode(render(*marks))):
        return ids
    parts = _parts(text, render, said, marks)
    if parts is not None:
        apart = [i for at, (part, own) in enumerate(parts) for i in _part_ids(tokenizer, part, own, at == 0)]
        return ids if steering(ids) == steering(apart) else apart
    if all(_harmless(tokenizer, x) for x in said):
        return ids  # the template itself writes other marks for these texts
    raise TokenizerError("the chat template changes the message, and the message spells a special token: rephrase it")


def _marks(count: int) -> list[str]:
    return [f"\u2060mark{i}\u2060" for i in range(count)]


def _parts(text: str, render: Render, said: Sequence[str], marks: Sequence[str]) -> list[tuple[str, bool]] | None:
    """`text` in order: its parts, and whether each is the template's own. None where that cannot be told."""
    neutral = render(*marks)
    pieces = re.split("(" + "|".join(marks) + ")", neutral)
    places = [marks.index(mark) for mark in pieces[1::2]]
    if len(set(places)) != len(places):
        return None
    for at, i in enumerate(places):
        before, _, after = neutral.partition(marks[i])
        alone = render(*(said[i] if j == i else mark for j, mark in enumerate(marks)))
        if len(alone) < len(before) + len(after) or not (alone.startswith(before) and alone.endswith(after)):
            return None
        pieces[2 * at + 1] = alone[len(before) : len(alone) - len(after)]  # as the template shows it: trimmed, say
    if "".join(pieces) != text:
        return None
    return [(piece, at % 2 == 0) for at, piece in enumerate(pieces) if piece]


def _part_ids(tokenizer: Tokenizer, text: str, own: bool, first: bool) -> list[int]:
    """Ids of a part; of one in the middle without the blank that some tokenizers put before a text, where a line's end keeps it away."""
    line = [] if first else tokenizer.encode("\n")
    ids = tokenizer.encode("\n" + text, plain=not own) if line else []
    return ids[len(line) :] if line and ids[: len(line)] == line else tokenizer.encode(text, plain=not own)


def _harmless(tokenizer: Tokenizer, text: str) -> bool:
    """Whether a text spells no control token, nor the end or the beginning of one that the template could complete."""
    if tokenizer.encode(text) != tokenizer.encode(text, plain=True):
        return False
    texts = [tokenizer.token(i) for i in tokenizer.control]
    return not any(text.endswith(t[:n]) or text.startswith(t[n:]) for t in texts for n in range(1, len(t)))
