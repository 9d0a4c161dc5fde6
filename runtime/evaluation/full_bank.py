"""Conversations whose memory is full: held-out facts are told, other things are talked about until every row was written and no fact is in sight.

Conversation number k is a function of the model, the seed, the window and k. It is asked QUESTIONS ordinary held-out questions, and none of those is
in its own talk. Knows sessions; measures nothing.
"""

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from ...models.tasks.natural import talk
from ..session.session import Session, checked_window
from .natural import GREEDY, SPLIT, Question, Talker, drawn, oldest
from .store import EvaluationError

if TYPE_CHECKING:
    from ..loading import Model

QUESTIONS = 25


class Full(NamedTuple):
    """A conversation that is ready to be asked. told: what its facts would answer. hidden: tokens since the last of them left the window."""

    session: Session
    told: tuple[Question, ...]
    hidden: int


class FullBank:
    """Holds the conversations. check: raises to stop.

    Raises EvaluationError for a model without a memory, or with one that cannot fold; PromptError for a window it cannot have.
    """

    def __init__(self, model: "Model", seed: int, window: int | None = None, check: Callable[[], None] = lambda: None):
        if not model.remembers:
            raise EvaluationError(f"{model.name} has no memory: there is nothing that could do harm")
        self.model, self.seed = model, seed
        self.talker = Talker(model, seed, 1, window, check)
        checked_window(model, window)
        messages = talk.ordinary(SPLIT)
        self.order = tuple(random.Random(f"harm {seed}").sample(messages, len(messages)))  # every ordinary held-out question, once

    def questions(self, number: int) -> tuple[str, ...]:
        """What conversation `number` is asked."""
        return self.order[number * QUESTIONS : (number + 1) * QUESTIONS]

    def conversation(self, number: int) -> Full:
        """Conversation `number` with its memory full, after what a chat does between turns (`Session.ahead`). Feeds the window."""
        model, talker = self.model, self.talker
        rng = random.Random(f"harm {self.seed} {number}")
        asked = set(self.questions(number))
        others = [(message, answer) for message, answer in talker.fillers() if message not in asked]
        if not others:
            raise EvaluationError(f"conversation {number} has nothing to talk about: all fillers are among its questions")
        turns, told = drawn(rng)
        session = Session(model, sampling=GREEDY, seed=self.seed, window=talker.window)
        for message, answer in turns:
            talker.check()
            session.hear(message, rng.choice(others)[1] if answer is None else answer)
        end, gone = session.at.seen, None
        while gone is None or session.at.written < model.config.memory.slots:
            talker.check()
            session.hear(*rng.choice(others))
            if gone is None and end <= oldest(session):
                gone = session.at.seen
        session.ahead()
        session.at = session.feeder.flush(session.at)
        return Full(session, told, session.at.seen - gone)
