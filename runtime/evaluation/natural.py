"""What is remembered of what people say in their own words: conversations, what they are asked, and four ways to answer. Knows sessions, no terminal.

A conversation tells its facts, goes on with ordinary talk, and is asked when each fact has been out of the window for a while. Every question is
answered four times, with the same words in the window:
memory: the session as it is. other: with another conversation's memory. off: with a memory that was never written.
whole: without memory, the whole conversation in the window, where the model's positions allow it.
A model with a recall recalls what the arm's memory heard: off and whole recall nothing.
Source of the conversations: models/tasks/natural, held out from training; and a folder of dialogues with marked values. Those written by hand are of
two parts: `validation`, on which settings may have been chosen, and `test`, on which nothing was.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ...models.errors import PromptError
from ...models.tasks.natural import dialogues, kinds, talk
from ...models.tasks.natural.answers import is_told
from ..backend import MemoryState
from ..session.cursor import Cursor
from ..session.sampling import Sampling
from ..session.session import Session
from ..session.windows import Windows
from .store import EvaluationError

if TYPE_CHECKING:
    from ..loading import Model

GREEDY = Sampling(temperature=0.0)
FACTS, FILLERS, FILLER_TOKENS = 6, 48, 64
SPLIT = "heldout"
Heard = tuple[Sequence[dict[str, str]], Sequence[int]]  # a transcript, and the turn of each of its messages
ARMS = ("memory", "other", "off", "whole")
PARTS = {"validation": talk.talks, "test": talk.unseen}  # of the conversations written by hand


class Question(NamedTuple):
    """question: as it is asked; value: what was told; accepted: other right forms; wrong: what must not be in the answer. turn: of the fact."""

    kind: str
    question: str
    value: str
    accepted: tuple[str, ...]
    wrong: tuple[str, ...]
    turn: int

    def is_right(self, reply: str) -> bool:
        """Whether the reply has the value in one of its forms, and nothing that is wrong."""
        return is_told(reply, self.value, self.accepted, self.wrong)


class Told(NamedTuple):
    """What is said before ordinary talk goes on: (message, answer or None for one of the model's own), and what is asked of it."""

    source: str
    turns: tuple[tuple[str, str | None], ...]
    questions: tuple[Question, ...]


class Row(NamedTuple):
    """One question at one distance. distance: tokens since the fact was last word for word in the window, 0 while it is. arm: its reply, None where
    it could not be asked; right: of each arm."""

    number: int
    source: str
    kind: str
    at: int
    distance: int
    question: str
    value: str
    memory: str
    other: str
    off: str
    whole: str | None
    right: tuple[bool, bool, bool, bool | None]


def part_of(asked: str) -> str:
    """The part that `--part` means: `auto` is test. Raises EvaluationError for one that there is not."""
    part = "test" if asked == "auto" else asked
    if part not in PARTS:
        raise EvaluationError(f"--part {asked}: natural asks what training does not use, its parts are {' and '.join(PARTS)}")
    return part


def told(number: int, seed: int, given: Sequence[Told], part: str = "validation") -> Told:
    """Conversation `number`: by turns drawn held-out facts, one written by hand of `part`, and one of `given`."""
    rng = random.Random(f"natural {seed} {number}")
    ways = ["drawn", "written", *(["given"] if given else [])]
    way = ways[number % len(ways)]
    if way == "given":
        return given[random.Random(f"natural {seed}").sample(range(len(given)), len(given))[number // len(ways) % len(given)]]
    if way == "written":
        known = PARTS[part]()
        chosen = known[random.Random(f"natural {seed}").sample(range(len(known)), len(known))[number // len(ways) % len(known)]]
        asked = [Question(chosen.title, q.question, q.value, q.accepted, q.wrong, i) for i, part in enumerate(chosen.asked) for q in part]
        return Told("written", tuple((message, None) for message in chosen.messages), tuple(asked))
    return Told("drawn", *drawn(rng))


def drawn(rng: random.Random) -> tuple[tuple[tuple[str, str | None], ...], tuple[Question, ...]]:
    """FACTS held-out facts of different kinds and values as people tell them: turns, and what is asked of each."""
    turns: list[tuple[str, str | None]] = []
    questions: list[Question] = []
    keys: set[tuple[str, ...]] = set()
    values: set[str] = set()
    while len(questions) < FACTS:
        fact = kinds.draw(rng, SPLIT)
        if fact.key[:2] in keys or fact.value.lower() in values:
            continue
        keys.add(fact.key[:2])
        values.add(fact.value.lower())
        if fact.earlier:
            turns.append((fact.earlier, None))
        said = kinds.chatty(rng, fact, SPLIT) if rng.random() < 0.5 else fact
        turns.append((said.text, None))
        questions.append(Question(fact.kind, kinds.ask(rng, fact), fact.value, (), (), len(turns) - 1))
    return tuple(turns), tuple(questions)


def oldest(session: Session) -> int:
    """The number of the oldest token of the conversation that stands word for word in the session's window, the head aside."""
    return session.at.seen - (session.at.filled - len(session.head()))


def from_dialogues(folder: Path) -> tuple[Told, ...]:
    """Held-out dialogues of a folder that tell at least two values, each slot asked for its last value. Raises CorpusError."""
    found = []
    for dialogue in dialogues.dialogues(folder):
        if dialogue.split != SPLIT:
            continue
        last = {value.slot: value for value in dialogue.values if value.questions}
        turns: list[tuple[str, str | None]] = []
        place: dict[int, int] = {}
        for number, (role, content) in enumerate(dialogue.turns):
            if role == "user":
                place[number] = len(turns)
                turns.append((content, None))
            elif turns:
                turns[-1] = (turns[-1][0], content)
        asked = []
        for value in last.values():
            same = [v.text for v in dialogue.values if v.slot == value.slot and v.text.lower() != value.text.lower()]
            asked.append(Question(value.slot, value.questions[0], value.text, (), tuple(dict.fromkeys(same)), place[value.turn]))
        if len(asked) > 1:
            found.append(Told("dialogues", tuple(turns), tuple(asked[:FACTS])))
    if not found:
        raise EvaluationError(f"{folder} has no held-out dialogue with two values: give one with services that training does not use")
    return tuple(found)


class Stop(NamedTuple):
    """Where a conversation is asked. heard: all its turns; hidden: for how many tokens each turn that told something has been out of the window."""

    at: int
    told: Told
    session: Session
    heard: tuple[tuple[str, str], ...]
    hidden: list[int]


@dataclass
class Talker:
    """Holds conversations with one model and asks. longest: tokens of an answer at most. check: raises to stop. part: of those written by hand."""

    model: "Model"
    seed: int
    longest: int
    window: int | None = None
    check: Callable[[], None] = lambda: None
    part: str = "validation"

    def __post_init__(self) -> None:
        if self.model.config.memory.cell != "gated":
            raise EvaluationError("--only natural asks sessions with a window: it needs a memory of cell gated")
        self._fillers: list[tuple[str, str]] = []

    def fillers(self) -> list[tuple[str, str]]:
        """Ordinary held-out messages with the model's own answers, without memory; made once."""
        if not self._fillers:
            rng = random.Random(f"fillers {self.seed}")
            for message in rng.sample(talk.ordinary(SPLIT), FILLERS):
                self.check()
                session = self._session()
                self._fillers.append((message, session.say(message, max_tokens=FILLER_TOKENS).strip() or "All right."))
        return self._fillers

    def conversation(self, number: int, given: Sequence[Told], distances: Sequence[int]) -> Iterator["Stop"]:
        """Conversation `number`, stopped at every distance in ascending order."""
        what, session = told(number, self.seed, given, self.part), self._session()
        rng = random.Random(f"talk {self.seed} {number}")
        heard: list[tuple[str, str]] = []
        ends: list[int] = []
        gone: dict[int, int] = {}

        def hear(message: str, answer: str) -> None:
            self.check()
            session.hear(message, answer)
            heard.append((message, answer))
            if len(heard) <= len(what.turns):
                ends.append(session.at.seen)
            for turn, end in enumerate(ends):
                if end <= oldest(session):
                    gone.setdefault(turn, session.at.seen)

        for message, answer in what.turns:
            hear(message, rng.choice(self.fillers())[1] if answer is None else answer)
        for distance in sorted(distances):
            while distance and (len(gone) < len(ends) or session.at.seen - max(gone.values()) < distance):
                hear(*rng.choice(self.fillers()))
            yield Stop(distance, what, session, tuple(heard), [session.at.seen - gone[t] if t in gone else 0 for t in range(len(ends))])

    def ask(
        self, session: Session, questions: Sequence[Question], memory: MemoryState | None = None, heard: Heard = ((), ())
    ) -> list[str]:
        """Answers from where the session stands; with `memory`, from the same window read anew with that memory, nothing in it written, and with what
        `heard` has to recall in place of the session's own.

        A window that is full to the last place is left first, in every arm alike.
        """
        at = session.at
        if at.filled == session.feeder.size and isinstance(session.feeder, Windows):
            at = session.feeder.ahead(at, session.head())
        if memory is not None:
            tokens = at.tokens + at.pending
            at = Cursor(memory, tokens=tokens, carried=len(tokens), starts=at.starts, seen=at.seen, turns=at.turns)
        at = session.feeder.flush(at)
        asked = session if memory is None else session.fork()
        if memory is not None:
            asked.transcript, asked.numbers = list(heard[0]), list(heard[1])
        return [self.answer(asked, at, q.question) for q in questions]

    def whole(self) -> "Whole":
        """Answers with a whole conversation in the window, for one conversation."""
        return Whole(self)

    def answer(self, session: Session, at: Cursor, question: str) -> str:
        """What a session answers from another point than its own."""
        self.check()
        asked = session.fork()
        asked.at = at
        return asked.say(question, max_tokens=self.longest).strip()

    def _session(self) -> Session:
        try:
            return Session(self.model, sampling=GREEDY, seed=self.seed, window=self.window)
        except PromptError as error:
            raise EvaluationError(str(error)) from None


class Whole:
    """One conversation in a window that holds all of it, read once however often it is asked: with a memory that is never written, and no recall."""

    def __init__(self, talker: Talker):
        self.talker, self.size = talker, talker.model.config.max_position_embeddings
        self.session = Session(talker.model, sampling=GREEDY, seed=talker.seed, window=self.size, recall=False)
        self.at = Cursor(self.session.feeder.new().memory)
        self.heard = 0

    def ask(self, heard: Sequence[tuple[str, str]], questions: Sequence[Question]) -> list[str | None]:
        """Answers after a conversation that goes on from the one asked before; None where the window would have to be left for them."""
        feeder = self.session.feeder
        assert isinstance(feeder, Windows)
        for message, answer in heard[self.heard :]:
            if not self.session.at.carried:
                self.session.hear(message, answer)
        self.heard, there = len(heard), self.session.at
        if there.carried or there.filled + feeder.reserve + 8 * self.talker.longest > self.size:
            return [None] * len(questions)
        ids = there.tokens + there.pending
        at = self.at._replace(pending=ids[len(self.at.tokens) :], carried=self.size - 1, starts=there.starts, seen=there.seen, turns=there.turns)
        self.at = feeder.flush(at)
        return [self.talker.answer(self.session, self.at, q.question) for q in questions]


def measure(
    talker: Talker, distances: Sequence[int], count: int, given: Sequence[Told], rows: list[Row], said: Callable[[list[Row]], None]
) -> Iterator[list[Row]]:
    """Rows of conversation after conversation until every distance has `count` questions, going on after `rows`; `said` hears of each batch.

    Another conversation's memory is that of the one before, at the same distance.
    """
    begin = 1 + max((row.number for row in rows), default=-1)
    done = len({(row.number, row.question) for row in rows})
    others = {stop.at: _remembered(stop.session) for stop in talker.conversation(begin - 1, given, distances)}
    number = begin
    while done < count:
        batch: list[Row] = []
        whole = talker.whole()
        for stop in talker.conversation(number, given, distances):
            questions = stop.told.questions[: count - done]
            never = stop.session.feeder.new().memory
            replies = [
                talker.ask(stop.session, questions),
                talker.ask(stop.session, questions, *others[stop.at]),
                talker.ask(stop.session, questions, never),
            ]
            alone = whole.ask(stop.heard, questions)
            for i, q in enumerate(questions):
                mine, other, off = (arm[i] for arm in replies)
                right = (q.is_right(mine), q.is_right(other), q.is_right(off), None if alone[i] is None else q.is_right(alone[i] or ""))
                where = number, stop.told.source, q.kind, stop.at, stop.hidden[q.turn]
                batch.append(Row(*where, q.question, q.value, mine, other, off, alone[i], right))
            others[stop.at] = _remembered(stop.session)
        done += len(stop.told.questions[: count - done])
        number += 1
        said(batch)
        yield batch


def _remembered(session: Session) -> tuple[MemoryState, Heard]:
    """What a session remembers: its memory, and what it can recall."""
    return session.memory(), ([dict(m) for m in session.transcript], list(session.numbers))
