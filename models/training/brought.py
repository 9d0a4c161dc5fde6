"""Questions and what is brought for them: a message that tells the answer, one that does not, or two. What a recall's opening and its reader learn from.

Knows texts, a finder and its encoder, which choose what stands in an answer's place.
"""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ..recall import Encoder, Recall, nearness
from ..tasks.natural.answers import mentions
from .tellings import SHORT, Said, Telling, Tellings

POOL, AMONG = 2000, (5, 20, 60, 150)  # messages to choose from; how many of them one question chooses among
ORDINARY = 0.4  # of them tell nothing: most of what people say does not
UNSAID = "Nothing."  # said where no message tells what is asked for; its first token begins no other answer
# Shares of samples: the finder's message tells nothing of it; asked before, or corrected; nothing told is asked for; of the others, those with a second
# message.
WRONG, AGAIN, IDLE, PAIR = 0.24, 0.06, 0.15, 0.3
SAME = 0.5  # of messages that tell nothing of it, where there was a conversation around: those of the same one
STRAY = 0.15  # of messages that reply to nothing: those before which the assistant had asked something all the same
BESIDE = 0.4  # of the short ones of the others: those that go with a message that has nothing to do with them
READ = 4  # messages the finder brings back at most, each read by itself
Encode = Callable[[str], Sequence[int]]


class Sample(NamedTuple):
    """passages in the order they were said; answer: to be said; value: what it has of what was told, or nothing where it is UNSAID."""

    passages: list[Said]
    question: str
    answer: str
    value: str


class Brought:
    """tellings: what is told and asked. ids: a text as the finder is given it; recall: whose finder chooses, and whose encoder where it has one.
    apart: who learns from it tells a message from what stands before it, where the answer may then be."""

    def __init__(self, tellings: Tellings, ids: Encode, recall: Recall, seed: int, apart: bool = False):
        self.tellings, self.ids, self.recall, self.apart = tellings, ids, recall, apart
        rng = random.Random(f"{seed} pool")
        self.pool = [tellings.message(rng, ORDINARY) for _ in range(POOL)]
        self._pool_ids = [tuple(ids(told.said.whole)) for told in self.pool]
        self._vectors: dict[int, np.ndarray] = {}

    def sample(self, rng: random.Random, pairs: float = PAIR) -> Sample:
        """See `_sample`; before some messages something is asked, or said, that they have nothing to do with."""
        sample = self._sample(rng, pairs)
        return sample._replace(passages=[s if s.before else s._replace(before=self._stray(rng, s.text, sample.value)) for s in sample.passages])

    def _stray(self, rng: random.Random, text: str, value: str) -> str:
        if self.tellings.asking and rng.random() < STRAY:
            return rng.choice(self.tellings.asking)
        if len(text.split()) > SHORT or rng.random() >= BESIDE:
            return ""
        said = rng.choice(self.pool).texts[-1]
        return "" if said == text or (value and mentions(said, value)) else said

    def _sample(self, rng: random.Random, pairs: float) -> Sample:
        """A question with a message that tells the answer, now and then beside another that the finder brings back for it; or with one of these alone, or with the question as it was asked before."""
        roll, pair = rng.random(), rng.random() < pairs
        if roll < IDLE:
            question, among = self.tellings.idle(rng, 0.0), rng.choice((None, POOL))  # of all that is said something is always about the same
            return Sample([self._beside(rng, question, Telling((question,)), among=among)], question, UNSAID, "")
        telling = self.tellings.draw(rng)
        question, answer, value, again = rng.choice(telling.asked)
        if roll < IDLE + AGAIN:  # what was said tells nothing to who corrects it, and what was asked nothing to who asks again
            corrected = len(telling.texts) > 1 and rng.random() < 0.5
            return Sample(*(([Said(telling.texts[0])], telling.texts[-1]) if corrected else ([Said(again)], question)), UNSAID, "")
        if roll < IDLE + AGAIN + WRONG:
            return Sample([self._beside(rng, question, telling, value)], question, UNSAID, "")
        if not pair:
            return Sample([telling.said], question, answer, value)
        if len(telling.texts) > 1:
            return Sample([*map(Said, telling.texts[:-1]), telling.said], question, answer, value)
        both = [telling.said, self._beside(rng, question, telling, value)]
        return Sample(both if rng.random() < 0.5 else both[::-1], question, answer, value)

    def _beside(self, rng: random.Random, question: str, telling: Telling, value: str = "", among: int | None = None) -> Said:
        """A message that does not answer a question: one of the same conversation, or one of the READ that the recall likes best. among: of so many, else of
        AMONG."""
        others = [o for o in telling.others if self.apart or not (value and mentions(o.before, value))]
        if others and rng.random() < SAME:
            return rng.choice(others)
        count = min(len(self.pool), among or rng.choice(AMONG))
        drawn = rng.sample(range(len(self.pool)), count)
        drawn = [i for i in drawn if not self._answers(self.pool[i], telling, value)]
        if not drawn:
            return Said(self.tellings.plain(rng))
        scores, _ = self.recall.finder.scores(tuple(self.ids(question)), [self._pool_ids[i] for i in drawn])
        best = [drawn[i] for i in np.argsort(-scores, kind="stable")]
        if self.recall.encoder is not None:
            best = self._again(self.recall.encoder, question, best, np.sort(-scores))
        return self.pool[rng.choice(best[:READ])].said

    def _again(self, encoder: Encoder, question: str, best: list[int], scores: np.ndarray) -> list[int]:
        """Places in the pool, those that the finder likes best, in the order in which the encoder likes them too (runtime/session/recalling.py). scores: the finder's, negative, ascending."""
        best = best[: encoder.among]
        new = [i for i in best if i not in self._vectors]
        asking, *made = encoder.vectors([question, *(self.pool[i].said.whole for i in new)])  # (t, d) each
        self._vectors.update((i, x.astype(np.float16)) for i, x in zip(new, made, strict=True))
        both = [s - encoder.weight * nearness(asking, self._vectors[i].astype(np.float32)) for i, s in zip(best, scores, strict=False)]
        return [best[i] for i in np.argsort(both, kind="stable")]

    @staticmethod
    def _answers(told: Telling, telling: Telling, value: str) -> bool:
        return told.texts[-1] in telling.texts or bool(told.kinds & telling.kinds) or bool(value and mentions(told.texts[-1], value))
