"""What a memory full of other things does to ordinary answers: the same questions answered by the backbone alone, and with the memory.

The backbone's own greedy answer comes first. Over its tokens, read by force, the divergence KL(backbone || with memory) of every choice is summed; then
the greedy answer with the memory is compared with it. All arms have the same words in the same window; only what is read beside them differs:
backbone: the model opened without its memory. memory: the session as it is. never: the model with its memory, never written. The last is the
control: it must give the backbone's numbers up to rounding. Axes: t choices of an answer, v vocabulary.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ...models.tasks.scoring import wilson
from ..session.chunks import Chunks
from ..session.cursor import Cursor, Feeder
from ..session.session import Session
from ..session.windows import Windows
from .full_bank import QUESTIONS, FullBank
from .store import EvaluationError

if TYPE_CHECKING:
    from ..loading import Model

RESAMPLES = 2000
DIVERGENCE_AIM, FIRST_AIM = 0.02, 0.70
_FIRST = re.compile(r".*?[^\W\d_].*?(?:[.!?](?=\s|$)|\n)", re.DOTALL)

Ids = tuple[int, ...]


class Row(NamedTuple):
    """One question. talk: its conversation; written: tokens in the memory; hidden: since the last fact left the window. scored: choices of the backbone's
    answer, its end included; divergence, control: nats over all of them, with the memory and with one never written. Then the three answers."""

    number: int
    talk: int
    written: int
    hidden: int
    question: str
    scored: int
    divergence: float
    control: float
    backbone: str
    memory: str
    never: str


class Share(NamedTuple):
    """How many of `asked` are the same, and Wilson's 95% interval of their share, 0 to 1."""

    same: int
    asked: int
    low: float
    high: float


class Side(NamedTuple):
    """What one arm came to beside the backbone. divergence: nats a token; low, high: its 95% bootstrap interval over questions, None for one alone."""

    divergence: float
    low: float | None
    high: float | None
    first: Share
    answer: Share


def first_sentence(text: str) -> str:
    """A text up to the first end of a sentence after its first letter (so not the stop of a list's `1.`): a `.`, `!` or `?` with a blank or the
    text's end behind it, or a line's end. All of a text without one, such as a sentence that was cut at the last token."""
    text = text.strip()
    found = _FIRST.match(text)
    return found[0].rstrip() if found else text


def divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """KL(p || q) in nats of each row of logits p, q (t, v): (t,) float64; what rounding leaves below 0 is 0. What q may not choose, an answer from a passage
    its beginning with the word for none, is left out of both."""
    able = np.isfinite(q)
    log_p, log_q = (_log_softmax(np.where(able, x, np.float32(-1e30))) for x in (p, q))
    return np.maximum(0.0, (np.exp(log_p) * (log_p - log_q)).sum(axis=-1))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return x


class Examiner:
    """Asks. backbone: the same model opened without its memory. longest: tokens of an answer at most."""

    def __init__(self, bank: FullBank, backbone: "Model", longest: int):
        if backbone.remembers or backbone.config.vocab_size != bank.model.config.vocab_size:
            raise EvaluationError(f"{backbone.name} is not {bank.model.name} without its memory")
        self.bank, self.model, self.longest = bank, bank.model, longest
        self.check = bank.talker.check
        self._alone = backbone

    def rows(self, count: int, done: int = 0, fed: Callable[[int], None] = lambda tokens: None) -> Iterator[Row]:
        """Questions done .. count - 1, each a function of the seed and its number. `fed` hears of the tokens each conversation has read.

        Raises EvaluationError for more questions than there are, at once; for a window too small for a question, when it is asked.
        """
        most = len(self.bank.order)
        if count > most:
            raise EvaluationError(f"--samples {count}: there are {most} ordinary held-out questions")
        return self._rows(count, done, fed)

    def _rows(self, count: int, done: int, fed: Callable[[int], None]) -> Iterator[Row]:
        for talk in range(done // QUESTIONS, -(-count // QUESTIONS)):
            full = self.bank.conversation(talk)
            session = full.session
            fed(session.at.seen)
            bare = Session(self._alone, sampling=session.sampling, seed=session.seed, window=session.feeder.size)
            arms = [(bare.feeder, unwritten(bare.feeder, session.at)), (session.feeder, session.at)]
            arms.append((session.feeder, unwritten(session.feeder, session.at)))
            written = self.model.backend.memory(session.at.window).written
            for place, question in enumerate(self.bank.questions(talk)):
                number = talk * QUESTIONS + place
                if done <= number < count:
                    self.check()
                    scored, (apart, control), (alone, memory, never) = self._asked(session, arms, question)
                    yield Row(number, talk, written, full.hidden, question, scored, apart, control, alone, memory, never)

    def _asked(self, session: Session, arms: Sequence[tuple[Chunks | Windows, Cursor]], question: str) -> tuple[int, list[float], list[str]]:
        """One question to every arm, the backbone first: choices scored, nats of the others beside it, and all answers as text."""
        wording = session.wording
        first, later = wording.turn(question, first=True), wording.turn(question, first=False)
        chunk = self.model.config.memory.chunk
        ready = []
        beside = session.beside(question)
        for feeder, at in arms:
            if len(later) >= chunk:
                raise EvaluationError(f"a question of {len(later)} tokens does not fit in a chunk of {chunk} with its answer")
            ready.append(feeder.logits(feeder.begin(at, first, later, wording.head())))
        if len({at.tokens for at in ready}) > 1:
            raise EvaluationError("the windows of the arms differ: their answers cannot be compared")
        if beside is not None:  # the session answers this in a window of its own
            arms = [arms[0], (beside.feeder, beside.at), arms[2]]
            ready[1] = beside.feeder.logits(beside.at)
        room = min(min(feeder.size - at.filled, chunk - at.filled + at.window.folded) for (feeder, _), at in zip(arms, ready, strict=True))
        if room < 1:
            raise EvaluationError(f"a window of {session.feeder.size} has no room for an answer: take a larger --window")
        alone, *others = zip([feeder for feeder, _ in arms], ready, strict=True)
        tokens, logits = self._greedy(*alone, min(self.longest, room))
        found, apart = [tokens], []
        for feeder, at in others:
            answer, given = self._beside(feeder, at, tokens, len(logits), min(self.longest, room))
            found.append(answer)
            apart.append(float(divergence(logits, given).sum()))
        if beside is not None and (begun := beside.given.tokens[: min(self.longest, room)]):
            found[1] = begun + self._on(beside.feeder, ready[1], begun, min(self.longest, room) - len(begun))
        return len(logits), apart, [self.model.text.decode(ids, skip_special=True).strip() for ids in found]

    def _greedy(self, feeder: Feeder, at: Cursor, most: int) -> tuple[Ids, np.ndarray]:
        """The greedy answer from `at`, whose logits are there: its tokens without the end, and the logits of each choice, (t, v)."""
        found: list[int] = []
        logits = []
        while True:
            self.check()
            assert at.logits is not None
            logits.append(at.logits)
            token = int(at.logits.argmax())
            if token in self.model.eos:
                break
            found.append(token)
            if len(found) == most:
                break
            at = feeder.flush(at._replace(pending=(token,)))
        return tuple(found), np.stack(logits)

    def _on(self, feeder: Feeder, at: Cursor, begun: Ids, most: int) -> Ids:
        """What goes on greedily from `at` after the tokens that an answer begins with."""
        return self._greedy(feeder, feeder.logits(at._replace(pending=begun)), most)[0] if most > 0 else ()

    def _beside(self, feeder: Feeder, at: Cursor, tokens: Ids, choices: int, most: int) -> tuple[Ids, np.ndarray]:
        """The greedy answer of an arm, and its logits (t, v) of the first `choices` choices when `tokens` are read by force.

        As long as an arm chooses what is forced, both are the same; from the first other choice on it goes its own way.
        """
        assert at.logits is not None
        logits, window = at.logits[None], at.window  # (1, v)
        if choices > 1:
            given, window = feeder.backend.extend(np.asarray(tokens[: choices - 1], dtype=np.int64), window, all_logits=True)  # (1, t - 1, v)
            logits = np.concatenate([logits, given[0]])
        forced = [*tokens, None][:choices]  # None: the end
        chosen = [None if int(i) in self.model.eos else int(i) for i in logits.argmax(axis=-1)]
        same = next((i for i, (a, b) in enumerate(zip(chosen, forced, strict=True)) if a != b), choices)
        if same == choices:
            return tokens, logits
        back = at._replace(
            window=feeder.backend.rewind(window, len(at.tokens) + same), tokens=at.tokens + tokens[:same], logits=logits[same]
        )
        rest, _ = self._greedy(feeder, back, most - same)
        return tokens[:same] + rest, logits


def unwritten(feeder: Feeder, at: Cursor) -> Cursor:
    """The same window on `feeder`'s model, run anew with a memory that was never written and is not written by what stands in it."""
    tokens = at.tokens + at.pending
    return feeder.flush(Cursor(feeder.new().memory, tokens=tokens, carried=len(tokens), starts=at.starts, seen=at.seen, turns=at.turns))


def sides(rows: Sequence[Row], seed: int) -> tuple[Side, Side]:
    """What rows, at least one, come to: with the memory, and with one never written. Questions are resampled for the interval."""
    return (
        _side(rows, [r.divergence for r in rows], [r.memory for r in rows], seed),
        _side(rows, [r.control for r in rows], [r.never for r in rows], seed),
    )


def _side(rows: Sequence[Row], nats: Sequence[float], answers: Sequence[str], seed: int) -> Side:
    sums, scored = np.array(nats), np.array([row.scored for row in rows])  # (questions,)
    mean, low, high = float(sums.sum() / scored.sum()), None, None
    if len(rows) > 1:
        drawn = np.random.default_rng(seed).integers(0, len(rows), (RESAMPLES, len(rows)))
        ends = np.quantile(sums[drawn].sum(axis=1) / scored[drawn].sum(axis=1), [0.025, 0.975])
        low, high = min(float(ends[0]), mean), max(float(ends[1]), mean)
    pairs = [(row.backbone, answer) for row, answer in zip(rows, answers, strict=True)]
    first = [first_sentence(a) == first_sentence(b) for a, b in pairs]
    return Side(mean, low, high, _share(first), _share([a == b for a, b in pairs]))


def _share(same: Sequence[bool]) -> Share:
    return Share(sum(same), len(same), *wilson(sum(same), len(same)))
