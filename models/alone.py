"""One process at a time: a lock on a file, also where the file system has no locks. Knows the lock library; nothing of what is protected."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

NO_LOCKS = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL})
"""What a file system without locks answers."""


@contextmanager
def alone(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock on file `path`, waiting for whoever holds it; `waiting` is then called once. Raises OSError where the file cannot be made."""
    from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

    def acquire(lock: BaseFileLock) -> BaseFileLock:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            waiting()
            lock.acquire()
        return lock

    try:
        lock = acquire(FileLock(path, fallback_to_soft=False))
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        lock = acquire(SoftFileLock(f"{path}.held"))
    try:
        yield
    finally:
        lock.release()
