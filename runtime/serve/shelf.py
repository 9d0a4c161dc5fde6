"""Sessions by name: in memory within a number of bytes, the longest unused out first, into files where there is a store. Knows no HTTP.

Chains and responses are moments: they are never changed, only gone on from (`onward`), so an edit or a regeneration finds them as they were. Named
sessions and conversations change with each turn; without a store they stay in memory, so their number is bounded by who makes them.
Where several servers share the store, another may have written, or deleted, what is in memory here: a session's file is then looked at before it is used.
Used by the jobs, of which one runs at a time, but for `names` and `size`, which may be asked for from anywhere.
"""

import threading
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from ..session.cursor import Cursor
from ..session.session import Session
from ..statefile.record import SessionError
from .store import NAMED, PASSING, Name, Store
from .strand import Strand

if TYPE_CHECKING:
    from ..loading import Model

ENTRY_BYTES = 4096
NOTE_BYTES = 44  # of a row in a ledger


class Shelf:
    """most: bytes of all sessions in memory. store: where to they go, or None. lost(name) hears of what was dropped without a file."""

    def __init__(self, model: "Model", most: int, store: Store | None, lost: Callable[[Name], None] = lambda name: None):
        self.model, self.most, self.store, self.lost = model, most, store, lost
        self._sessions: OrderedDict[Name, Session] = OrderedDict()
        self._unsaved: set[Name] = set()
        self._took: weakref.WeakKeyDictionary[Session, _Taker] = weakref.WeakKeyDictionary()  # who went on with a moment's window
        self._stamps: weakref.WeakKeyDictionary[Session, str | None] = weakref.WeakKeyDictionary()  # of the files that they are, but for chains
        self._lock = threading.Lock()
        about = model.backend.describe()
        self._bank_bytes = about.state_bytes + model.config.memory.slots * NOTE_BYTES
        self._window_bytes: dict[int, int] = {}

    def get(self, name: Name) -> Session | None:
        """The session, from memory or its file; None where there is none. Raises a SessionError for a named one's file that cannot be used."""
        with self._lock:
            session = self._sessions.get(name)
        if session is not None and not self._is_stale(name, session):
            with self._lock:
                self._sessions.move_to_end(name)
            return session
        if self.store is None or not self.store.has(name):
            return None
        stamp = self.store.stamp(name) if self._watched(name) else None
        try:
            session = Session.restore(self.model, self.store.path(name))
        except SessionError:
            if name.kind in NAMED:
                raise
            self.store.remove(name)  # a moment can be made again
            return None
        self.store.used(name)
        if stamp is not None:
            self._stamps[session] = stamp
        with self._lock:
            self._sessions[name] = session
        self.tidy()
        return session

    def _watched(self, name: Name) -> bool:
        """Whether another server may change its file. A chain's key says what is in it."""
        return self.store is not None and self.store.shared and name.kind != "chain"

    def _is_stale(self, name: Name, session: Session) -> bool:
        """Whether the file is another's now, or gone: then the session is no longer of use."""
        if not self._watched(name):
            return False
        assert self.store is not None
        stamp = self.store.stamp(name)
        if stamp is not None and stamp == self._stamps.get(session):
            return False
        with self._lock:
            self._sessions.pop(name, None)
        return True

    def put(self, name: Name, session: Session) -> None:
        """Keep a session under a name. Named ones, and responses, are written at once where there is a store. Raises WriteError; the name's session is then
        the one that it was."""
        if name.kind != "chain" and self.store is not None:
            self._write(name, session)
        else:
            self._unsaved.add(name)
        with self._lock:
            self._sessions[name] = session
            self._sessions.move_to_end(name)
        self.tidy()

    def drop(self, name: Name) -> bool:
        """Forget a session, its file too; whether there was one."""
        with self._lock:
            there = self._sessions.pop(name, None) is not None and not self._watched(name)
        self._unsaved.discard(name)
        if self.store is not None:
            there = there or self.store.has(name)
            self.store.remove(name)
        return there

    def has(self, name: Name) -> bool:
        with self._lock:
            here = name in self._sessions and not self._watched(name)
        return here or (self.store is not None and self.store.has(name))

    def names(self, kind: str, owner: str) -> list[Name]:
        """An owner's sessions of a kind, in memory or not."""
        with self._lock:
            here = [n for n in self._sessions if (n.kind, n.owner) == (kind, owner) and not self._watched(n)]
        return sorted({*here, *(self.store.names(kind, owner) if self.store is not None else ())})

    def named(self) -> int:
        """How many named sessions and conversations there are, of all owners."""
        with self._lock:
            here = sum(1 for n in self._sessions if n.kind in NAMED and not self._watched(n))
        return max(here, self.store.count() if self.store is not None else 0)

    def named_bytes(self) -> int:
        """Bytes of named sessions and conversations in memory."""
        return self._bytes(kinds=NAMED)[1]

    def size(self) -> tuple[int, int]:
        """Sessions in memory, and their bytes. Banks that several share count once."""
        return self._bytes(kinds=(*NAMED, *PASSING))

    def _bytes(self, kinds: tuple[str, ...]) -> tuple[int, int]:
        with self._lock:
            names = Counter(s for n, s in self._sessions.items() if n.kind in kinds)
        banks = Counter(bank for session in names for bank in _banks(session))
        return len(names), sum(map(self._own, names)) + len(banks) * self._bank_bytes

    def _own(self, session: Session) -> int:
        """Bytes of a session besides its banks."""
        moments = (session.at, *session.snapshots)
        window = 0 if session.at.window is None else self._window(session.feeder.size)
        return ENTRY_BYTES + sum(8 * m.filled for m in moments) + sum(len(m["content"]) for m in session.transcript) + window

    def tidy(self) -> None:
        """Get within the bytes: first windows of the longest unused are let go (they are run again), then whole sessions go to files or are dropped."""
        total = self.size()[1]
        if total <= self.most:
            return
        with self._lock:
            order = list(self._sessions.items())
        names = Counter(session for _, session in order)
        banks = Counter(bank for session in names for bank in _banks(session))
        for _, session in order[:-1]:
            if total > self.most and session.at.window is not None and session is not order[-1][1]:
                total -= self._own(session)
                session.at = session.at.at_rest()
                total += self._own(session)
        for name, session in order[:-1]:
            if total <= self.most:
                return
            if self.store is None and name.kind in NAMED:
                continue
            if not self._filed(name, session):
                self.lost(name)
            with self._lock:
                self._sessions.pop(name, None)
            self._unsaved.discard(name)
            names[session] -= 1
            if not names[session]:
                total -= self._own(session)
                for bank in _banks(session):
                    banks[bank] -= 1
                    total -= 0 if banks[bank] else self._bank_bytes

    def onward(self, moment: Session) -> Session:
        """A session that goes on from a moment, with the moment's window; the moment stays as it is, to be run again if it is needed.

        A window belongs to one of them only: what is fed after it would be in the way of the other. A moment that gave its window away gets it back from
        the session that went on with it, where nothing after the moment was folded: the same question asked again costs its own tokens.
        """
        moment.settle()
        live = moment.at if moment.at.window is not None else self._returned(moment)
        other = moment.fork()
        other.at, moment.at = live, moment.at.at_rest()
        self._took[moment] = _Taker(weakref.ref(other), threading.current_thread())
        return other

    def _returned(self, moment: Session) -> Cursor:
        """The moment's cursor with the window of the session that took it, if that can be taken back to where it was."""
        took, past = self._took.get(moment), moment.at
        taker = None if took is None or took.busy else took.session()
        now = past if taker is None else taker.at
        if taker is None or now.window is None or now.window.stale or now.memory is not past.memory:
            return past
        ids = past.tokens + past.pending
        if not now.window.folded <= len(ids) <= now.window.length or now.tokens[: len(ids)] != ids:
            return past
        window = moment.feeder.backend.rewind(now.window, len(ids))
        taker.at = now.at_rest()
        return past._replace(window=window, tokens=ids, pending=(), logits=None, held=now.held)

    def save_all(self) -> None:
        """Write everything that has no file yet, where there is a store. Raises the first WriteError or SessionError, when all were tried."""
        with self._lock:
            order = list(self._sessions.items())
        failed: list[Exception] = []
        for name, session in order:
            try:
                self._save(name, session)
            except (SessionError, OSError) as error:
                failed.append(error)
        if failed:
            raise failed[0]

    def _save(self, name: Name, session: Session) -> None:
        if self.store is not None and name in self._unsaved:
            self._write(name, session)

    def _filed(self, name: Name, session: Session) -> bool:
        """Whether there is a file of it now. A full disk stops nobody: a moment can be made again, and what has a name was written before."""
        try:
            self._save(name, session)
        except (SessionError, OSError):
            return False
        return self.store is not None

    def _write(self, name: Name, session: Session) -> None:
        assert self.store is not None
        with self.store.writing(name) as path:
            size = session.save(path)
        if self._watched(name):
            self._stamps[session] = self.store.stamp(name)
        self._unsaved.discard(name)
        if name.kind in PASSING:
            self.store.grown(size)

    def _window(self, size: int) -> int:
        if size not in self._window_bytes:
            self._window_bytes[size] = self.model.backend.describe(size).window_bytes
        return self._window_bytes[size]


class _Taker(NamedTuple):
    """A session that went on with a moment's window, and the thread of the job in which it did."""

    session: Callable[[], Session | None]
    thread: threading.Thread

    @property
    def busy(self) -> bool:
        """Whether another job may be in the middle of it: then its window is in use."""
        return self.thread is not threading.current_thread() and isinstance(self.thread, Strand) and not self.thread.ended


def _banks(session: Session) -> set[int]:
    """The banks that a session holds, by their id()."""
    return {id(moment.memory) for moment in (session.at, *session.snapshots)}


def resting(session: Session) -> Session:
    """The session as a moment: without what can be undone; and without the text, but where a recall looks through it."""
    if session.recalling is None:
        return bare(session)
    session.settle()
    session.snapshots, session.reply, session.recalled = [], None, []
    return session


def bare(session: Session) -> Session:
    """The session as a moment whose text is its key's."""
    session.settle()
    session.forgotten_turns += len(session.transcript)
    session.transcript, session.numbers, session.snapshots, session.reply = [], [], [], None
    return session
