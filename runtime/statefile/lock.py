"""One session file, one owner: a lock that ends with its process, however that ends.

Knows nothing of what the file holds. The lock is on a neighbour, `PATH.lock`, because a save replaces the session
file itself; the neighbour stays behind empty and harmless (removing it would let two processes each lock a file of
their own). The operating system lets go of it. Where the file system has no such locks, a second neighbour,
`PATH.lock.held`, names its owner (process, start time, host and boot): one that this machine can see to have ended
is taken over, any other is not.
"""

import errno
import os
import socket
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from filelock import FileLock, SoftFileLock, Timeout

from ...models.alone import NO_LOCKS
from ...models.atomic import check_file, write_error
from ...models.oserrors import shown
from .record import SessionLockedError


class SessionLock:
    """Exclusive use of the session file `path`. A context manager, or `acquire` and `release`; never waits.

    Raises, on acquiring, SessionLockedError (names the file and, where known, the process that holds it) or
    WriteError (the lock's file cannot be made). Two paths to one file, through a symbolic link, share one lock.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self.file = Path(os.path.realpath(path) + ".lock")
        self._held_file = Path(f"{self.file}.held")
        self._hard = FileLock(self.file, thread_local=False, fallback_to_soft=False)
        self._soft = SoftFileLock(self._held_file, thread_local=False)

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._hard.is_locked or self._soft.is_locked

    @property
    def sure(self) -> bool:
        """Whether the operating system holds it, and lets go of it when this process ends, for other machines to see too."""
        return self._hard.is_locked

    def acquire(self) -> "SessionLock":
        """Take the lock, or refuse at once. Taking it twice is the same as once."""
        if self.held:
            return self
        self._check()
        try:
            try:
                self._hard.acquire(blocking=False)
            except OSError as error:
                if isinstance(error, Timeout) or error.errno not in NO_LOCKS:
                    raise
                self._acquire_soft()
        except Timeout:
            raise SessionLockedError(f"{self.path} is in use {_by(self._owner())}: close it there, or use another session file") from None
        except OSError as error:
            raise write_error(self.file, error, "the session was not opened") from error
        with suppress(OSError):
            self.file.write_text(f"{os.getpid()}\n", encoding="ascii")
        return self

    def release(self) -> None:
        """Let go. Does nothing when the lock is not held."""
        if not self.held:
            return
        with suppress(OSError):
            os.truncate(self.file, 0)
        self._hard.release()
        self._soft.release()

    def __enter__(self) -> "SessionLock":
        return self.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()

    def _check(self) -> None:
        """Refuse a lock's file that cannot be one: the lock library would make a folder, and would wait for a pipe."""
        if not self.file.parent.is_dir():
            missing = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            raise write_error(self.file, missing, "the session was not opened")
        check_file(self.file)

    def _acquire_soft(self) -> None:
        """Take the lock by a file's existence. Raises SessionLockedError."""
        for _ in range(2):  # where names cannot be exchanged, the first try only removes an ended owner's file
            with suppress(Timeout):
                self._soft.acquire(blocking=False)
                return
        pid, host = self._record()
        if pid is not None and host == socket.gethostname():
            if _runs(pid):
                raise SessionLockedError(f"{self.path} is in use {_by(pid)}: close it there, or use another session file")
            who = f"process {pid}, which has ended"
        else:
            who = "a process that did not say which" if pid is None else f"process {pid} on {host}"
        raise SessionLockedError(
            f"{self.path} is held by {who}: close it there, or, when it has ended, remove {shown(self._held_file)}; or use another session file"
        )

    def _record(self) -> tuple[int | None, str]:
        """The process and host that the file of a lock by existence names."""
        try:
            with open(self._held_file, "rb") as f:
                pid, host = f.read(1024).decode().split("\n")[:2]
            return int(pid), host.partition("?pidns-")[0]
        except (OSError, ValueError):
            return None, ""

    def _owner(self) -> int | None:
        try:
            with open(self.file, "rb") as f:
                return int(f.read(20))
        except (OSError, ValueError):
            return None


def _runs(pid: int) -> bool:
    if os.name != "posix":  # there a signal of 0 is one
        return True
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def _by(pid: int | None) -> str:
    if pid is None:
        return "by another process"
    return "by this very process" if pid == os.getpid() else f"by process {pid}"
