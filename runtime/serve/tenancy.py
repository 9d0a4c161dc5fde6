"""Who has a store's folder: one server alone, or several that share it; and who has which session of it now. Knows locks that end with their process, and
which files are whose; nothing of what they hold."""

import time
from collections.abc import Callable, Hashable
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

from ..statefile.lock import SessionLock
from ..statefile.record import SessionLockedError

GATE = "store"  # held by the server that has the folder alone; by others for a moment, while they come in
SERVERS = "servers"
PATIENCE = 30.0  # seconds that a server waits for the others to have come in


class Tenancy:
    """A server's right to `folder`. shared: other servers may have it too. clean() is called while nobody else has it, and only then.

    Raises SessionLockedError where others have the folder and it cannot be shared with them, or its file system has no locks; WriteError.
    """

    def __init__(self, folder: Path, shared: bool, clean: Callable[[], None]):
        self.folder, self.shared = folder, shared
        self._own: SessionLock | None = None
        self._gate = SessionLock(folder / GATE)
        self._enter()
        try:
            others = self._others()
            if others and not shared:
                raise SessionLockedError(f"{folder} is shared by {others} running server{'s'[: others - 1]}: end them, or give --shared here too")
            if not others:
                clean()
            if shared:
                (folder / SERVERS).mkdir(mode=0o700, exist_ok=True)
                self._own = SessionLock(folder / SERVERS / token_hex(8)).acquire()
                if not self._own.sure:
                    raise SessionLockedError(f"the file system of {folder} has no locks, so servers cannot share it: use another folder")
        except BaseException:
            self.leave()
            raise
        if shared:
            self._gate.release()

    def leave(self) -> None:
        """Give the folder up."""
        if self._own is not None:
            self._own.release()
            with suppress(OSError):
                self._own.file.unlink()
        self._gate.release()

    def _enter(self) -> None:
        end = time.monotonic() + (PATIENCE if self.shared else 0)
        while True:
            try:
                self._gate.acquire()
                return
            except SessionLockedError:
                if time.monotonic() >= end:
                    raise
            time.sleep(0.05)

    def _others(self) -> int:
        """How many servers share the folder. Called by who holds the gate; what those that ended left is removed."""
        count = 0
        for path in (self.folder / SERVERS).glob("*.lock"):
            lock = SessionLock(path.with_suffix(""))
            try:
                lock.acquire().release()
                path.unlink(missing_ok=True)
            except SessionLockedError:
                count += 1
        return count


class Holding:
    """Sessions that this server has now, and no other of the same folder. path(key): the session's file, None for what needs no lock. took(key) is called when
    one was taken. Used by one thread."""

    def __init__(self, path: Callable[[Hashable], Path | None], took: Callable[[Hashable], None] = lambda key: None):
        self.path, self.took = path, took
        self._held: dict[Hashable, SessionLock] = {}

    def take(self, key: Hashable) -> bool:
        """Have a session for this server alone; whether another has it now. Never waits. A session that has no file is nobody's. Raises WriteError."""
        path = self.path(key)
        if path is None or not path.is_file():
            return True
        lock = SessionLock(path)
        try:
            lock.acquire()
        except SessionLockedError:
            return False
        self._held[key] = lock
        self.took(key)
        return True

    def give(self, key: Hashable) -> None:
        """Let others have it. The lock's file goes with its session, whose id is never given again."""
        lock = self._held.pop(key, None)
        if lock is not None:
            if not lock.path.is_file():
                with suppress(OSError):
                    lock.file.unlink()
            lock.release()
