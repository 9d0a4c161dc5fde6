"""One answer, in a job: finding what was heard already, hearing the rest, answering, keeping where it ended. Knows sessions, no HTTP.

A Ticket hears of it: ("began", Began) when the prompt is read, ("piece", Piece) as text is made, and at the end the Outcome.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from ..session.reading import MESSAGE_BYTES_MAX
from ..session.recalling import Recalling
from ..session.sampling import new_seed
from ..session.session import Session
from ..session.transcript import newest
from . import chain
from .chain import Message
from .heads import Heads
from .logprobs import Logprobs
from .refusal import Refusal
from .rounds import Gone
from .scheduler import Ticket
from .shared import Shared
from .shelf import Shelf, bare, resting
from .store import Name

if TYPE_CHECKING:
    from ..loading import Model

FINISH = {"stop": "stop", "stop-string": "stop", "length": "length", "interrupted": "interrupted"}


@dataclass(frozen=True)
class Ask:
    """What is asked for. history: messages before `message`, the last one, a user's. sampling: settings given, the model's own for the others.

    top: likeliest tokens to tell beside each one, None for no log probabilities.
    """

    owner: str
    message: str
    history: tuple[Message, ...] = ()
    system: str | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    top: int | None = None


class Began(NamedTuple):
    """reuse: turns of the transcript that were heard already, None where a session was named. Tokens are of the prompt; cached: those not computed. seed: of the draws.
    recalled: turns that it is answered from, where it is answered from what was said."""

    reuse: int | None
    prompt_tokens: int
    cached_tokens: int
    seed: int
    recalled: tuple[int, ...] = ()


class Piece(NamedTuple):
    """Text, and the log probabilities of its tokens where they were asked for."""

    text: str
    logprobs: list[dict[str, Any]]


@dataclass(frozen=True)
class Outcome:
    """finish: `stop`, `length`, or `interrupted` (the server stops, or the client went away). whole: the text, tokenised again, is the tokens that were made:
    no stop string was cut off, nobody stopped it, and another reading of the transcript would come to the same. Times in seconds, first_seconds to the end
    of the prompt."""

    text: str
    finish: str
    whole: bool
    completion_tokens: int
    began: Began
    logprobs: list[dict[str, Any]]
    first_seconds: float
    seconds: float


class Turns:
    """Over one model and one shelf. window: of new sessions. notice(outcome) hears of each answer."""

    def __init__(self, model: "Model", shelf: Shelf, window: int | None, notice: Callable[[Outcome], None] = lambda outcome: None):
        self.model, self.shelf, self.window, self.notice = model, shelf, window, notice
        assert isinstance(model.backend, Shared)
        self._heads = Heads(model.backend)
        self._recalling: dict[str, Recalling] = {}  # by owner: it remembers how it encoded what one conversation said, so not one a session

    def new(self, system: str | None, **settings: Any) -> Session:
        """A session in which nothing was said. Raises PromptError or TokenizerError for a system prompt that the model cannot have."""
        session = Session(self.model, system or None, window=self.window, **settings)
        session.head()
        return session

    def transcript(self, ask: Ask, ticket: Ticket) -> Outcome:
        """Answer the last message of a whole transcript: go on from the longest beginning of it that was heard, by this owner, already."""
        return self.moment(ask, ticket)[0]

    def moment(self, ask: Ask, ticket: Ticket) -> tuple[Outcome, Session]:
        """As `transcript`; and the session at the answer's end, as a moment."""
        keys = self._keys(ask)
        base, heard = self._longest(ask, keys)
        if base is None:
            base = self.new(ask.system)
        elif heard < len(ask.history):
            base = self.shelf.onward(base)
        if heard < len(ask.history):
            self.hear(base, ask.history[heard:], ticket, text=False)
            self.shelf.put(Name("chain", ask.owner, keys[-1]), bare(base))
        reuse = sum(message.role == "user" for message in ask.history[:heard])
        outcome, session = self.onward_from(base, ask, ticket, reuse, ask.history)
        if outcome.whole:
            said = chain.keys(keys[-1], (Message("user", ask.message), Message("assistant", outcome.text)))
            self.shelf.put(Name("chain", ask.owner, said[-1]), session)
        return outcome, session

    def onward_from(
        self, base: Session, ask: Ask, ticket: Ticket, reuse: int | None, said: tuple[Message, ...] | None = None
    ) -> tuple[Outcome, Session]:
        """Answer a message after a moment, which stays as it is. The draws begin anew, so that what a seed says does not depend on what was kept.

        said: what was said until then, to be looked through where the model has a recall; the moment's own text where it is not given.
        """
        session = self.shelf.onward(base)
        if said is not None and session.recalling is not None:
            retold(session, said)
        session.seed = new_seed() if ask.seed is None else ask.seed
        session.at = session.at._replace(draws=0)
        session.sampling = replace(self.model.sampling, **ask.sampling)
        outcome = self._answer(session, ask, ticket, reuse)
        return outcome, resting(session)

    def within(self, session: Session, ask: Ask, ticket: Ticket) -> Outcome:
        """Answer a message in a session that is the caller's own. A seed given begins the draws anew; else they go on."""
        own = session.sampling
        if ask.seed is not None:
            session.seed = ask.seed
            session.at = session.at._replace(draws=0)
        session.sampling = replace(own, **ask.sampling)
        try:
            return self._answer(session, ask, ticket, None)
        finally:
            session.sampling = own

    def plain(self, ask: Ask, ticket: Ticket) -> Outcome:
        """Continue a plain text, outside any conversation."""
        session = Session(self.model, None, replace(self.model.sampling, **ask.sampling), new_seed() if ask.seed is None else ask.seed, window=self.window)
        return self._answer(session, ask, ticket, None, plain=True)

    def hear(self, session: Session, messages: tuple[Message, ...], ticket: Ticket, text: bool = True) -> None:
        """Take messages as they are, in a session that is the caller's own: turns with their answers, and what was not answered as something to read.

        text: the session's transcript is to have them. Raises Gone where nobody waits any more; the session is then of no use.
        """
        for content, answer in turns(messages):
            _ends(ticket)
            if answer is None:
                session.read(content, "message")
            else:
                session.hear(content, answer)
            if not text:
                bare(session)

    def _keys(self, ask: Ask) -> list[str]:
        first = chain.root(ask.owner, self.model.fingerprint, ask.system or None, self.window or self.model.window)
        return chain.keys(first, ask.history)

    def _longest(self, ask: Ask, keys: list[str]) -> tuple[Session | None, int]:
        """The session after the longest beginning of the history that there is, and its messages."""
        for count in range(len(ask.history), 0, -1):
            if ask.history[count - 1].role == "user" and count < len(ask.history) and ask.history[count].role == "assistant":
                continue  # in the middle of a turn
            if (found := self.shelf.get(Name("chain", ask.owner, keys[count]))) is not None:
                return found, count
        return None, 0

    def _answer(self, session: Session, ask: Ask, ticket: Ticket, reuse: int | None, plain: bool = False) -> Outcome:
        start, first = time.monotonic(), 0.0
        fed = 0
        if session.recalling is not None:
            session.recalling = self._recalling.setdefault(ask.owner, session.recalling)
        began: Began | None = None
        told = None if ask.top is None else Logprobs(self.model, ask.top)
        session.chosen = None if told is None else told.heard

        def feeds(tokens: int) -> None:
            nonlocal fed
            if began is None:
                fed += tokens
                _ends(ticket)

        def interrupted() -> bool:
            nonlocal began, first
            if began is None:
                first = time.monotonic() - start
                unheard = _unheard(session, ask.message) if session.recalled else (0, 0)
                prompt = session.at.seen + unheard[0]
                began = Began(reuse, prompt, max(0, prompt - fed - sum(unheard)), session.seed, tuple(dict.fromkeys(p.number for p in session.recalled)))
                ticket.answering = True
                ticket.say("began", began)
            return ticket.over

        session.feeder.on_feed = feeds
        session.feeder.begun = partial(self._heads.begun, ask.owner, session.head(), session.feeder)
        kept: list[dict[str, Any]] = []
        try:
            if plain:
                pieces: Iterator[str] = session.complete(ask.message, ask.max_tokens, ask.stop, interrupted=interrupted)
            else:
                pieces = session.stream(ask.message, ask.max_tokens, ask.stop, interrupted)
            for text in pieces:
                shown = [] if told is None else told.shown(text)
                kept += shown
                ticket.say("piece", Piece(text, shown))
        finally:
            session.feeder.on_feed = lambda tokens: None
            session.feeder.begun = lambda tokens: None
            session.chosen = None
        reply = session.reply
        assert reply is not None and began is not None
        if told is not None and reply.finish != "stop-string" and (rest := told.rest()):
            kept += rest
            ticket.say("piece", Piece("", rest))
        whole = reply.finish != "interrupted" and tuple(self.model.encode(reply.text, plain=True)) == reply.tokens
        took = time.monotonic() - start
        outcome = Outcome(reply.text, FINISH[reply.finish], whole, len(reply.tokens), began, kept, first, took)
        self.notice(outcome)
        return outcome


def _unheard(session: Session, message: str) -> tuple[int, int]:
    """Of an answer from what was said: tokens of its message, which the conversation's window hears afterwards, and those before it that are to be fed."""
    at = session.at
    live = at.window is not None and not at.window.stale
    return len(session.wording.turn(message, first=not at.filled)), len(at.pending) if live else at.filled


def retold(session: Session, messages: tuple[Message, ...]) -> None:
    """Give a moment its text again, as a session that heard `messages` has it; what was read is left out."""
    said = [(text, number) for number, turn in enumerate(turns(messages), 1) if turn[1] is not None for text in (("user", turn[0]), ("assistant", turn[1]))]
    session.transcript = newest([text for text, _ in said])
    session.numbers = [number for _, number in said[len(said) - len(session.transcript) :]]
    session.forgotten_turns = session.at.turns - len(session.transcript)


def turns(messages: tuple[Message, ...]) -> Iterator[tuple[str, str | None]]:
    """User messages with their answers, None where there is none."""
    at = 0
    while at < len(messages):
        answered = at + 1 < len(messages) and messages[at + 1].role == "assistant"
        yield messages[at].content, messages[at + 1].content if answered else None
        at += 2 if answered else 1


def check_order(messages: tuple[Message, ...], where: str) -> None:
    """Raise Refusal where an answer has no message before it: a memory hears turns."""
    for i, message in enumerate(messages):
        if message.role == "assistant" and (i == 0 or messages[i - 1].role == "assistant"):
            raise Refusal(400, f"{where}: message {i} is an answer without a user's message right before it", where, "invalid_order")


def check_text(text: str, where: str, empty: bool = False, said: bool = False) -> str:
    """A text that a tokenizer can be given. said: by a model, which may say anything. Raises Refusal naming `where`: empty, more than 1 MiB, a NUL, half a
    surrogate pair."""
    if not empty and not text.strip():
        raise Refusal(400, f"{where} is empty: write something", where)
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise Refusal(400, f"{where} holds half of a surrogate pair: it is not text", where) from None
    if size > MESSAGE_BYTES_MAX:
        raise Refusal(413, f"{where} has {size} bytes, one message has at most {MESSAGE_BYTES_MAX}", where)
    if "\0" in text and not said:
        raise Refusal(400, f"{where} has a NUL character: it is not text", where)
    return text


def _ends(ticket: Ticket) -> None:
    if ticket.over:
        raise Gone
