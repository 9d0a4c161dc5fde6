"""What the endpoints share: the model once it is loaded, its thread, the sessions, who may come in. Knows no HTTP."""

import secrets
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..statefile.record import SessionError
from .limits import Limits
from .metrics import Metrics
from .owners import Owners
from .records import Records
from .refusal import Refusal
from .scheduler import Scheduler, Ticket
from .shared import Shared, piece_of
from .shelf import Shelf
from .store import NAMED, Name, Store
from .turns import Ask, Outcome, Turns

if TYPE_CHECKING:
    from ..loading import Model


class Service:
    """load: gives the model, in the thread that will use it. window: of new sessions. ready(model) hears that requests are answered, ended(error) that
    the thread ended, and why if it failed."""

    def __init__(
        self,
        load: Callable[[], "Model"],
        owners: Owners,
        limits: Limits,
        store: Store | None = None,
        window: int | None = None,
        ready: Callable[["Model"], None] = lambda model: None,
        ended: Callable[[BaseException | None], None] = lambda error: None,
        metrics: type[Metrics] = Metrics,
    ):
        self.owners, self.limits, self.store, self.window = owners, limits, store, window
        self.scheduler = Scheduler(limits.queue, limits.running, None if store is None else store.holding)
        self.metrics = metrics(self._size, lambda: (self.scheduler.waiting, len(self.scheduler.running)))
        self.records = Records(store)
        self.started = int(time.time())
        self._load, self._ready, self._ended = load, ready, ended
        self._error: BaseException | None = None
        self._model: Model | None = None
        self._shelf: Shelf | None = None
        self._turns: Turns | None = None

    def start(self) -> None:
        """Begin to load the model; returns at once."""
        self.scheduler.start(self._first, self._last)

    @property
    def ready(self) -> bool:
        return self._turns is not None

    @property
    def model(self) -> "Model":
        assert self._model is not None
        return self._model

    @property
    def shelf(self) -> Shelf:
        assert self._shelf is not None
        return self._shelf

    @property
    def turns(self) -> Turns:
        assert self._turns is not None
        return self._turns

    @property
    def hide(self) -> dict[str, str]:
        """Texts that no answer shows, and what it says in their place."""
        out = {tempfile.gettempdir(): "the temporary folder"}
        if self.store is not None:
            out = {str(self.store.folder): "the store", **out}
        return out if self._model is None else {str(self._model.path): self._model.name, **out}

    def check_model(self, name: str | None) -> None:
        """Raise Refusal 404 for a request that means another model than the one that is here."""
        if name is not None and name != self.model.name:
            raise Refusal(404, f"model {name[:80]!a} is not here: this server has {self.model.name}", "model", "model_not_found")

    def check_room(self) -> None:
        """Raise Refusal 429 where there are as many named sessions as there may be, or, without a store, as fit in memory."""
        if self.shelf.named() >= self.limits.sessions:
            raise Refusal(429, f"there are {self.limits.sessions} sessions and conversations, as many as may be (--max-sessions): delete one", code="too_many_sessions")
        if self.store is None and self.shelf.named_bytes() > self.limits.memory:
            raise Refusal(429, "the sessions fill the memory (--session-bytes), and there is no --store: delete one", code="too_many_sessions")

    def take(self, name: Name) -> Any:
        """A named session. Raises Refusal 404, or a SessionError."""
        session = self.shelf.get(name)
        if session is None:
            raise missing(name.kind, name.id)
        return session

    def within(self, name: Name, ask: Ask, ticket: Ticket) -> Outcome:
        """Answer in a named session, and keep it; of a turn that failed what the session kept of it.

        The turn is made in a copy: where it cannot be written, the session is the one that its file has.
        """
        session = self.take(name)
        going = self.shelf.onward(session)
        try:
            return self.turns.within(going, ask, ticket)
        finally:
            if going.at.turns != session.at.turns:
                self.shelf.put(name, going)

    def drop(self, name: Name) -> None:
        """Delete a session and what belongs to it. Raises Refusal 404 where there is none."""
        if not self.shelf.drop(name):
            raise missing(name.kind, name.id)
        self.records.drop(name)

    def _lost(self, name: Name) -> None:
        self.records.drop(name)
        self.metrics.dropped()

    def _size(self) -> tuple[int, int]:
        return (0, 0) if self._shelf is None else self._shelf.size()

    def _first(self) -> bool:
        try:
            loaded = self._load()
            self._model = model = replace(loaded, backend=Shared(loaded.backend, piece_of(loaded)))
            self._shelf = Shelf(model, self.limits.memory, self.store, self._lost)
            turns = Turns(model, self._shelf, self.window, self.metrics.answered)
            turns.new(None)  # refuses a window that the model cannot have
            self._turns = turns
            self._ready(model)
        except BaseException as error:
            self._error = error
        return self._error is None  # else the thread ends, and `ended` tells why

    def _last(self) -> None:
        error = self._error
        try:
            if self._shelf is not None and error is None:
                self._shelf.save_all()
        except (SessionError, OSError) as failed:
            error = failed
        finally:
            if self.store is not None:
                self.store.close()
            self._ended(error)


def new_id(kind: str, family: str | None = None) -> str:
    """A name that nobody can guess: the kind's prefix and 32 hexadecimal digits, the first of them the family's, where there is one."""
    digits = (family or "") + secrets.token_hex(16)
    return f"{PREFIX[kind]}_{digits[:32]}"


PREFIX = {"session": "sess", "conversation": "conv", "response": "resp", "message": "msg"}


def named(kind: str, owner: str, given: str) -> Name:
    """The Name of an id that a client gave. Raises Refusal 404 for what is no id of this kind, so that none is ever a path."""
    prefix, _, digits = given.partition("_")
    if prefix != PREFIX[kind] or len(digits) != 32 or not set(digits) <= set("0123456789abcdef"):
        raise missing(kind, given)
    return Name(kind, owner, given)


def missing(kind: str, given: str) -> Refusal:
    """The refusal of an id that is nobody's, or somebody else's."""
    how = f": make one with POST /v1/{kind}s" if kind in NAMED else ": it was deleted, never stored, or dropped from memory"
    return Refusal(404, f"there is no {kind} {given[:60]!a}{how}", code=f"{kind}_not_found")
