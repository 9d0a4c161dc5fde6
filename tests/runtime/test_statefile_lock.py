"""The lock on a session: one owner, a clear refusal for the other, and nothing left behind by a kill."""

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
