"""What a memory holds, turn by turn, in words. Knows ledgers, windows and a tokenizer; no backend. Axes: n rows, p parts
of a row, t positions of a window.

The words of a turn are those of the tokens whose rows are still most of it, in the order of the conversation.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ...models.errors import LM2Error
from ...models.text.dialogue import Dialogue
from ...models.text.rendered import encode_document, encode_turn
from ...models.text.tokenizer import Tokenizer
from .ledger import Ledger, Spans, turns_of

GAP = "…"
HEARD = 1e-3  # from which size on a row can be heard
Words = Callable[[Sequence[tuple[int, int]]], str]


@dataclass(frozen=True)
class Held:
    """What the memory holds of one turn. number: 0 for what every window begins with, -1 for what was written before turns were noted.

    share: of the size of all that the memory holds, 0 to 1. rows: that can be heard and have a part of the turn. text: the words of its rows, `…` where
    others are between them, without the template's; where there are none those in the window. window: its tokens that are there word for word.
    """

    number: int
    share: float
    rows: int
    text: str
    window: int


def held_turns(ledger: Ledger | None, spans: Spans, tokens: Sequence[int], words: Words, limit: int | None = None) -> list[Held]:
    """Turns in the memory or the window (its `tokens`, with `spans`), what is held most strongly first, `limit` of them at most."""
    there = turns_of(spans, 0, len(tokens))  # (t,)
    ledger = ledger or Ledger.empty(0)
    rows, loud = ledger.rows, ledger.rows["sizes"] > 0  # (n,), (n, p)
    owners = rows["turns"][ledger.known, 0]
    names = np.unique(np.concatenate((rows["turns"][loud], owners, there))).tolist()
    sizes = {turn: float(ledger.parts(turn).sum(dtype=np.float64)) for turn in names}
    total = sum(sizes.values()) or 1.0
    out = []
    for turn in sorted(names, key=lambda name: (-sizes[name], -name))[:limit]:
        own = np.sort(rows[ledger.owned(turn)], order="number")
        at = np.flatnonzero(there == turn).tolist()  # positions in the window
        text = words(list(zip(own["number"].tolist(), own["token"].tolist(), strict=True))) or words([(i, tokens[i]) for i in at])
        out.append(Held(turn, sizes[turn] / total, int((ledger.parts(turn) >= HEARD).sum()), text, len(at)))
    return out


def no_words(pairs: Sequence[tuple[int, int]]) -> str:
    """The words where there is no tokenizer."""
    return ""


def wording(tokenizer: Tokenizer, frames: Iterable[tuple[int, ...]]) -> Words:
    """What tells the words of (number, token) pairs. frames: what the template writes after a control token, left out with it."""
    longest_first = sorted({f for f in frames if f}, key=len, reverse=True)

    def words(pairs: Sequence[tuple[int, int]]) -> str:
        parts: list[str] = []
        for run in _runs(pairs):
            said: list[list[int]] = [[]]  # between control tokens
            at, edge = 0, True
            while at < len(run):
                frame = next((f for f in longest_first if edge and tuple(run[at : at + len(f)]) == f), ())
                edge = not frame and run[at] in tokenizer.control
                if edge:
                    said.append([])
                elif not frame:
                    said[-1].append(run[at])
                at += len(frame) or 1
            text = " ".join(" ".join(tokenizer.decode(ids, skip_special=True) for ids in said).split())
            parts += [text] if text else []
        return f" {GAP} ".join(parts)

    return words


def frames_of(tokenizer: Tokenizer, dialogue: Dialogue) -> set[tuple[int, ...]]:
    """What a chat template writes behind its control tokens, such as the name of a role. Empty where the template cannot say it."""
    try:
        parts = [side for first in (True, False) for side in encode_document(tokenizer, dialogue, first)]
        parts += [tokenizer.encode(dialogue.close()), _opening(tokenizer, dialogue)]
    except LM2Error:
        return set()
    out = set()
    for part in parts:
        marks = [i for i, token in enumerate(part) if token in tokenizer.control]
        for mark, end in zip(marks, [*marks[1:], len(part)], strict=True):
            out.add(tuple(part[mark + 1 : end]))
    return out


def _opening(tokenizer: Tokenizer, dialogue: Dialogue) -> list[int]:
    """What the template writes between a message and its answer."""
    before, _ = encode_document(tokenizer, dialogue, False)
    ids = encode_turn(tokenizer, dialogue, "x", False)
    return ids[len(before) + len(tokenizer.encode("x")) :] if ids[: len(before)] == before else []


def _runs(pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Tokens in pieces, cut where numbers are left out."""
    out: list[list[int]] = []
    last = None
    for number, token in pairs:
        if last is None or number != last + 1:
            out.append([])
        out[-1].append(token)
        last = number
    return out
