"""One session file, one owner: a lock that the operating system lets go of when its process ends, however it ends.

Knows nothing of what the file holds. The lock is on a neighbour, `PATH.lock`, because a save replaces the session
file itself; the neighbour stays behind empty and harmless (removing it would let two processes each lock a file of
their own).
"""

import errno
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from ...models.atomic import write_error
from .record import SessionLockedError


class SessionLock:
    """Exclusive use of the session file `path`. A context manager, or `acquire` and `release`; never waits.

    Raises, on acquiring, SessionLockedError (names the file and, where known, the process that holds it) or
    WriteError (the lock's file cannot be made). Two paths to one file, through a symbolic link, share one lock.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._file = Path(os.path.realpath(path) + ".lock")
        self._lock = FileLock(str(self._file), thread_local=False)

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._lock.is_locked

    def acquire(self) -> "SessionLock":
        """Take the lock, or refuse at once. Taking it twice is the same as once."""
        if self.held:
            return self
        if not self._file.parent.is_dir():  # the lock library would make the folder
            missing = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            raise write_error(self._file, missing, "the session was not opened")
        before = self._owner()
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            pid = self._owner()
            if pid is None and before is not None:  # older lock libraries empty the file even when they are refused
                pid = before
                self._sign(before)
            raise SessionLockedError(f"{self.path} is in use {_by(pid)}: close it there, or use another session file") from None
        except OSError as error:
            raise write_error(self._file, error, "the session was not opened") from error
        self._sign(os.getpid())
        return self

    def release(self) -> None:
        """Let go. Does nothing when the lock is not held."""
        if not self.held:
            return
        with suppress(OSError):
            os.truncate(self._file, 0)
        self._lock.release()

    def __enter__(self) -> "SessionLock":
        return self.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()

    def _sign(self, pid: int) -> None:
        with suppress(OSError):
            self._file.write_text(f"{pid}\n", encoding="ascii")

    def _owner(self) -> int | None:
        try:
            with open(self._file, "rb") as f:
                return int(f.read(20))
        except (OSError, ValueError):
            return None


def _by(pid: int | None) -> str:
    if pid is None:
        return "by another process"
    return "by this very process" if pid == os.getpid() else f"by process {pid}"
