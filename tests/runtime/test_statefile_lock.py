"""The lock on a session: one owner, a clear refusal for the other, and nothing left behind by a kill."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from lm2.models.errors import WriteError
from lm2.runtime.statefile.lock import SessionLock
from lm2.runtime.statefile.record import SessionError, SessionLockedError

HOLD = """
import sys, time
from pathlib import Path
from lm2.runtime.statefile.lock import SessionLock
lock = SessionLock(Path(sys.argv[1])).acquire()
print("held", flush=True)
time.sleep(60)
"""
TRY = """
import sys
from pathlib import Path
from lm2.runtime.statefile.lock import SessionLock
try:
    SessionLock(Path(sys.argv[1])).acquire()
    print("acquired")
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "chat.lm2s"


@pytest.fixture
def holder(path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate(timeout=60)


def attempt(path):
    return subprocess.run([sys.executable, "-c", TRY, str(path)], capture_output=True, text=True, timeout=60).stdout.strip()


def test_two_processes(path, holder):
    with pytest.raises(SessionLockedError) as caught:
        SessionLock(path).acquire()
    message = str(caught.value)
    assert isinstance(caught.value, SessionError) and "\n" not in message
    assert str(path) in message and f"process {holder.pid}" in message and "close it" in message
    with pytest.raises(SessionLockedError, match=str(holder.pid)):  # a refusal does not lose the owner's name
        SessionLock(path).acquire()


@pytest.mark.skipif(os.name != "posix", reason="uses SIGKILL")
def test_a_killed_owner_holds_nothing(path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait(timeout=60)
    with SessionLock(path) as lock:
        assert lock.held
        assert attempt(path).startswith("SessionLockedError") and f"process {os.getpid()}" in attempt(path)
    assert attempt(path) == "acquired"


def test_the_same_process_twice(path):
    with SessionLock(path), pytest.raises(SessionLockedError, match="by this very process"):
        SessionLock(path).acquire()


def test_release_and_take_again(path):
    lock = SessionLock(path)
    lock.release()
    for _ in range(3):
        assert lock.acquire() is lock and lock.acquire() is lock and lock.held
        lock.release()
        assert not lock.held
        with SessionLock(path):
            pass
    left = {p.name: p.stat().st_size for p in path.parent.iterdir()}
    assert set(left.values()) <= {0} and set(left) <= {"chat.lm2s.lock"}


def test_an_error_inside_lets_go(path):
    with pytest.raises(ZeroDivisionError), SessionLock(path):
        raise ZeroDivisionError
    assert not SessionLock(path).acquire().release()


@pytest.mark.skipif(os.name != "posix", reason="uses symbolic links")
def test_a_link_to_the_file_is_the_same_session(path):
    path.touch()
    link = path.parent / "link.lm2s"
    link.symlink_to(path)
    with SessionLock(path), pytest.raises(SessionLockedError):
        SessionLock(link).acquire()


def test_other_sessions_are_not_concerned(path):
    with SessionLock(path), SessionLock(path.with_name("other.lm2s")) as other:
        assert other.held


@pytest.mark.parametrize("content", [b"", b"not a number", b"\xff" * 100, b"-5"])
def test_a_stray_lock_file_is_harmless(path, content):
    path.with_name("chat.lm2s.lock").write_bytes(content)
    with SessionLock(path) as lock:
        assert lock.held


def test_folder_missing(tmp_path):
    with pytest.raises(WriteError, match="the folder does not exist: create it first"):
        SessionLock(tmp_path / "none" / "chat.lm2s").acquire()
    assert not list(tmp_path.iterdir())


# File systems without locks

NO_FLOCK = """
import fcntl, sys
def flock(fd, operation): raise OSError(int(sys.argv[2]), "no locks here")
fcntl.flock = flock
"""
CODES = pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL])
POSIX = pytest.mark.skipif(os.name != "posix", reason="replaces flock and uses SIGKILL")


@pytest.fixture
def without(path):
    """`without(code)` holds the session in a process where flock answers `code`."""
    started = []

    def hold(code):
        command = [sys.executable, "-c", NO_FLOCK + HOLD, str(path), str(code)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield hold
    for process in started:
        process.kill()
        process.communicate(timeout=60)


def attempt_without(path, code):
    command = [sys.executable, "-c", NO_FLOCK + TRY, str(path), str(code)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.strip()


@POSIX
@CODES
def test_without_locks_two_processes_and_a_kill(path, without, code):
    """The second is refused by name while the first lives; after a kill the session opens, and an empty `.lock` of before does not matter."""
    path.with_name("chat.lm2s.lock").touch()
    process = without(code)
    for _ in range(2):
        refused = attempt_without(path, code)
        assert refused.startswith("SessionLockedError") and f"in use by process {process.pid}" in refused
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    assert attempt_without(path, code) == "acquired"
    assert without(code).poll() is None


@POSIX
def test_without_locks_a_recycled_process_number_holds_nothing(path, without):
    """The owner that the file names has ended; its number is now this process's."""
    process = without(errno.ENOSYS)
    held = path.with_name("chat.lm2s.lock.held")
    pid, host, started = held.read_text().splitlines()
    process.kill()
    process.wait(timeout=60)
    assert int(pid) == process.pid
    held.write_text(f"{os.getpid()}\n{host}\n{int(started) + 1}\n")
    assert attempt_without(path, errno.ENOSYS) == "acquired"


@POSIX
def test_without_locks_another_machine_keeps_its_lock(path):
    held = path.with_name("chat.lm2s.lock.held")
    held.write_text("1\nanother.example\n5\n")
    refused = attempt_without(path, errno.ENOSYS)
    assert "held by process 1 on another.example" in refused and f"when it has ended, remove {held}" in refused
    assert held.read_text() == "1\nanother.example\n5\n"
    held.unlink()
    assert attempt_without(path, errno.ENOSYS) == "acquired"


@POSIX
def test_without_locks_release(path, monkeypatch):
    import fcntl

    def flock(fd, operation):
        raise OSError(errno.ENOSYS, "no locks here")

    monkeypatch.setattr(fcntl, "flock", flock)
    for _ in range(2):
        with SessionLock(path) as lock:
            assert lock.held and lock.acquire() is lock
            with pytest.raises(SessionLockedError, match="by this very process"):
                SessionLock(path).acquire()
    assert [p.name for p in path.parent.iterdir()] in ([], ["chat.lm2s.lock"])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_lock_file_that_is_none(path):
    os.mkfifo(path.with_name("chat.lm2s.lock"))
    with pytest.raises(WriteError, match="it is a pipe"):
        SessionLock(path).acquire()


@POSIX
@CODES
def test_one_process_at_a_time_without_locks(tmp_path, monkeypatch, code):
    """What a pull and an export into the cache wait with."""
    import fcntl

    from filelock import SoftFileLock, Timeout

    from lm2.models.alone import alone

    def flock(fd, operation):
        raise OSError(code, "no locks here")

    monkeypatch.setattr(fcntl, "flock", flock)
    waited = []
    for _ in range(2):
        with alone(tmp_path / "lock", lambda: waited.append(1)), pytest.raises(Timeout):
            SoftFileLock(tmp_path / "lock.held").acquire(blocking=False)
    assert not waited and not (tmp_path / "lock.held").exists()
