"""Greedy conversations on two backends, and a session file carried from one to the other in mid-window.

Knows sessions, no gates. A model with a tokenizer is talked to through its template; one without is fed drawn ids by the same session.
The conversation is held in a small window, so that its folds and at least one slide fall within the turns.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..session.sampling import Sampling
from ..session.session import WINDOW_MIN, Session
from ..statefile.record import SessionValueError
from .inputs import Inputs
from .measures import bank_nmse, top_gap
from .sides import Side
from .talk import QUESTIONS

if TYPE_CHECKING:
    from ..loading import Model

TURNS_MAX = 16
GREEDY = Sampling(temperature=0.0)
Turns = list[tuple[int, ...]]


@dataclass(frozen=True)
class Agreement:
    """Greedy tokens of two conversations. agreed: before the first difference. gap: the reference's distance between its two likeliest
    tokens there (None: no difference, or not known). turn and index say where."""

    tokens: int
    agreed: int
    gap: float | None = None
    turn: int = -1
    index: int = -1

    @property
    def whole(self) -> bool:
        return self.agreed == self.tokens


@dataclass(frozen=True)
class Handover:
    """A session saved on `source` and continued on `target`, against the one that stayed. changed: numbers of the bank that are not
    bit-identical after the move. written: tokens in the memory where it was saved; position, carried, folds: of its window.
    bank: NMSE of each bank after the last turn, against the one that stayed; None where their tokens are not the same, and so their memories.
    refused: why the file was not opened at all."""

    source: str
    target: str
    written: int
    position: int
    carried: int
    folds: int
    changed: int
    agreement: Agreement
    bank: list[float] | None = None
    refused: str = ""


@dataclass(frozen=True)
class Conversation:
    """What was held. window: positions; folds, slides: of the reference's session (cell released: chunks committed, none).

    bank: NMSE of each bank in the end, of the two that stayed; None where their tokens are not the same.
    """

    agreement: Agreement
    handovers: list[Handover]
    window: int
    folds: int
    slides: int
    bank: list[float] | None = None


def window_size(model: "Model") -> int:
    """A chunk and a quarter, so that one fold comes from a whole chunk without one; what the model can have, at least what a session can."""
    memory, most = model.config.memory, model.config.max_position_embeddings
    return memory.chunk if memory.cell == "released" else min(most, max(WINDOW_MIN, memory.chunk * 5 // 4))


class Talking:
    """One session that stays where it is: what was said in each turn, and what is needed to look at a turn again."""

    def __init__(self, side: Side, inputs: Inputs):
        self.side, self.inputs = side, inputs
        size = window_size(side.model)
        self.session = Session(side.model, None, GREEDY, inputs.seed, window=size)
        self.turns: Turns = []
        self.before: list[Session] = []
        self.folds = self.slides = 0
        feeder = self.session.feeder
        feeder.on_write, feeder.on_slide = self._folded, self._slid
        # cell gated: what is read leaves no room for a turn, which then begins with a slide
        count = size - size // 8 if side.model.config.memory.cell == "gated" else size + size // 8
        if inputs.has_text:
            self.session.read(inputs.reading(count))
        else:
            self.session.at = feeder.flush(feeder.close(feeder.append(self.session.at, inputs.drawn(count, 0).tolist()), ()))

    def _folded(self, tokens: int, written: int) -> None:
        self.folds += 1

    def _slid(self, carried: int) -> None:
        self.slides += 1

    def take(self, most: int) -> None:
        """One more turn of at most `most` tokens."""
        self.before.append(self.session.fork())
        self.turns.append(turn(self.session, self.inputs, len(self.turns), most))

    def gap(self, k: int, index: int) -> float | None:
        """Distance between the two likeliest tokens where turn k chose its token `index`."""
        again = self.before[k].fork()
        turn(again, self.inputs, k, index + 1)
        return None if again.at.logits is None else float(top_gap(again.at.logits[None])[0])


def turn(session: Session, inputs: Inputs, k: int, most: int) -> tuple[int, ...]:
    """Turn k of the conversation: a question, or drawn ids, and the greedy answer of at most `most` tokens."""
    if inputs.has_text:
        session.say(QUESTIONS[k % len(QUESTIONS)], max_tokens=most)
        return session.reply.tokens if session.reply else ()
    feeder, answer = session.feeder, []
    session.at = feeder.append(session.at, inputs.drawn(max(1, feeder.size // 8), k + 1).tolist())
    for _ in range(most):
        session.at = feeder.logits(session.at)
        assert session.at.logits is not None
        answer.append(int(np.argmax(session.at.logits)))
        session.at = feeder.append(session.at, answer[-1:])
    session.at = feeder.close(session.at, ())
    return tuple(answer)


def converse(reference: Side, other: Side, inputs: Inputs, tokens: int) -> Conversation:
    """Hold the same conversation on both, at least `tokens` greedy tokens on the reference if its answers are long enough; save each session
    in mid-window after the first turn (or the next that ends there), carry it over, and go through the later turns on the other side."""
    first, second = Talking(reference, inputs), Talking(other, inputs)
    size, part = first.session.feeder.size, max(1, tokens // 4)
    plan: list[int] = []
    saved = 0  # turns before the files were written
    with tempfile.TemporaryDirectory(prefix="lm2-parity-") as folder:
        files = [Path(folder) / f"{i}.lm2s" for i in range(2)]
        while len(plan) < TURNS_MAX and (not 0 < saved < len(plan) or sum(map(len, first.turns)) < tokens):
            plan.append(min(part, max(1, tokens - sum(map(len, first.turns)))))
            first.take(plan[-1])
            second.take(plan[-1])
            if not saved and all(0 < t.session.at.filled < size for t in (first, second)):
                saved = len(plan)
                for talking, file in ((first, files[0]), (second, files[1])):
                    talking.session.save(file)
        carried = [_carried(first, second, files[0], plan, saved), _carried(second, first, files[1], plan, saved)] if saved else []
    agreement = _agreement(first, second.turns)
    return Conversation(agreement, carried, size, first.folds, first.slides, _memories(agreement, first.session, second.session))


def _carried(stayed: Talking, target: Talking, file: Path, plan: list[int], saved: int) -> Handover:
    at = stayed.before[saved].at if saved < len(plan) else stayed.session.at
    place = at.memory.written, at.filled, at.carried, len(at.folds)
    try:
        moved = Session.restore(target.side.model, file)
    except SessionValueError as error:  # a memory that does not hold what its file says: nothing of it agrees
        nothing = Agreement(sum(map(len, stayed.turns[saved:])) or 1, 0, None, saved, 0)
        return Handover(stayed.side.label, target.side.label, *place, stayed.side.model.backend.to_host(at.memory).size, nothing, None, str(error))
    there, here = stayed.side.model.backend.to_host(at.memory), target.side.model.backend.to_host(moved.at.memory)
    changed = int((there.view(np.uint32) != here.view(np.uint32)).sum())
    turns = stayed.turns[:saved] + [turn(moved, stayed.inputs, k, plan[k]) for k in range(saved, len(plan))]
    agreement = _agreement(stayed, turns, saved)
    bank = _memories(agreement, stayed.session, moved)
    return Handover(stayed.side.label, target.side.label, *place, changed, agreement, bank)


def _memories(agreement: Agreement, *sessions: Session) -> list[float] | None:
    """How far apart two memories are in the end, bank by bank; not compared where the tokens in them are others."""
    return bank_nmse(*(s.model.backend.to_host(s.memory()) for s in sessions)) if agreement.whole else None


def _agreement(stayed: Talking, turns: Turns, skip: int = 0) -> Agreement:
    """How far `turns` go along with the conversation that stayed, from turn `skip` on."""
    total, agreed = sum(map(len, stayed.turns[skip:])), 0
    for k in range(skip, len(stayed.turns)):
        mine, theirs = stayed.turns[k], turns[k]
        for i in range(max(len(mine), len(theirs))):
            if i >= len(mine) or i >= len(theirs) or mine[i] != theirs[i]:
                return Agreement(total, min(agreed, total - 1) if total else 0, stayed.gap(k, i), k, i)
            agreed += 1
    return Agreement(total, agreed)
