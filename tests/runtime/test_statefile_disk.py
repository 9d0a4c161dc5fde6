"""Session files and a hostile disk: kills, full disks, missing permissions. The file that was there stays, whole."""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import forge
import pytest

from lm2.models.errors import WriteError
from lm2.runtime.statefile.file import read_session, write_session
from lm2.runtime.statefile.record import SessionReadError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="uses signals and limits of POSIX")
SHAPE = (4, 1, 64, 64)
EXPECTED = replace(forge.EXPECTED, bank_shape=SHAPE)
TESTS = Path(forge.__file__).parent
CHILD = f"""
import os, resource, signal, sys
sys.path.insert(0, {str(TESTS)!r})
from dataclasses import replace
from pathlib import Path
import forge
from lm2.models.errors import WriteError
from lm2.runtime.statefile.file import write_session
path, shape = Path(sys.argv[1]), {SHAPE}
record = forge.record(shape)
def save(n):
    return write_session(path, replace(record, meta=replace(record.meta, draws=1000 + n)))
"""


def child(code, *args, prefix=(), **kwargs):
    return subprocess.Popen(
        [*prefix, sys.executable, "-c", CHILD + code, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,
    )


def finish(process):
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "chat.lm2s"
    write_session(path, forge.record(SHAPE))
    return path


def test_kill_in_the_middle_of_saves(path):
    """15 times SIGKILL at a random moment of a save loop: the last save that returned, or a later one, is there."""
    seed = 11
    rng = random.Random(seed)
    acknowledged, saves = 0, 0
    for _ in range(15):
        # the pipe's lines are the acknowledgements: a save is counted only after write_session returned
        code = "n = int(sys.argv[2])\nwhile True:\n    save(n)\n    os.write(1, b'%d\\n' % n)\n    n += 1\n"
        process = child(code, path, acknowledged + 1)
        first = process.stdout.readline()
        assert first, process.stderr.read()
        time.sleep(rng.uniform(0.0, 0.05))
        process.send_signal(signal.SIGKILL)
        rest, _err = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
        lines = [first, *rest.splitlines()]
        saves += len(lines)
        acknowledged = int(lines[-1])
        found = read_session(path, EXPECTED).meta.draws - 1000
        assert acknowledged <= found <= acknowledged + 1
        acknowledged = found
        assert {p.name for p in path.parent.iterdir()} <= {"chat.lm2s", ".chat.lm2s.partial"}
    print(f"seed {seed}: 15 kills over {saves} saves")
    assert saves > 30
    write_session(path, forge.record(SHAPE))
    assert list(path.parent.iterdir()) == [path]  # the stray of the last kill is gone


@pytest.mark.parametrize(
    ("step", "new"),
    [("first byte", False), ("half", False), ("flush", False), ("before rename", False), ("after rename", True)],
)
def test_kill_at_every_step(path, step, new):
    """SIGKILL at a named step of one save: the old file before the rename, the new one after it, nothing between."""
    code = """
import builtins
def die(): os.kill(os.getpid(), signal.SIGKILL)
step, total = sys.argv[2], path.stat().st_size
class File:
    def __init__(self, f): self.f, self.n = f, 0
    def __enter__(self): return self
    def __exit__(self, *a): self.f.close()
    def __getattr__(self, name): return getattr(self.f, name)
    def write(self, data):
        for byte in (bytes(data)[:1], bytes(data)[1:]):
            self.n += self.f.write(byte)
            self.f.flush()
            if step == "first byte" or (step == "half" and self.n > total // 2): die()
real_open, real_replace = builtins.open, os.replace
def watched(p, mode="r", *a, **k):
    f = real_open(p, mode, *a, **k)
    return File(f) if mode == "wb" else f
builtins.open = watched
os.fsync = (lambda fd: die()) if step == "flush" else os.fsync
def rename(a, b):
    if step == "before rename": die()
    real_replace(a, b)
    if step == "after rename": die()
os.replace = rename
save(1)
"""
    before = path.read_bytes()
    process = child(code, path, step)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert (path.read_bytes() == before) != new
    assert read_session(path, EXPECTED).meta.draws == (1001 if new else 17)


def test_a_limit_at_any_byte(path):
    """The kernel refuses to let a file grow past byte k (RLIMIT_FSIZE): one line names the file, the old one stays."""
    code = """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
total = path.stat().st_size
for k in (0, 1, 7, 8, 500, 4096, total // 2, total - 4097, total - 1):
    resource.setrlimit(resource.RLIMIT_FSIZE, (k, resource.RLIM_INFINITY))
    try:
        save(1)
        print("saved", k)
    except WriteError as error:
        print(str(error))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
"""
    before = path.read_bytes()
    lines = finish(child(code, path)).splitlines()
    assert len(lines) == 9
    for line in lines:
        assert str(path) in line and "the previous file is unchanged" in line
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_a_full_disk(tmp_path):
    """A file system of 512 KiB that the second save overfills: ENOSPC from the kernel, the old file byte for byte."""
    probe = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    mount = f"mount -t tmpfs -o size=512k none {tmp_path}"
    if not shutil.which("unshare") or subprocess.run([*probe, mount], capture_output=True).returncode:
        pytest.skip("this system does not let a user mount a tmpfs of their own")
    code = """
size = save(1)
old = path.read_bytes()
(path.parent / "filler").write_bytes(bytes(512 * 1024 - size - 40960))
try:
    save(2)
    print("saved")
except WriteError as error:
    print(error.__cause__.errno, error)
assert path.read_bytes() == old
print(sorted(p.name for p in path.parent.iterdir()))
(path.parent / "filler").unlink()
print(save(2) == size)
"""
    shell = [*probe, mount + ' && exec "$@"', "sh"]
    path = tmp_path / "chat.lm2s"
    lines = finish(child(code, path, prefix=shell)).splitlines()
    assert lines[0].startswith("28 ") and str(path) in lines[0] and "the disk is full" in lines[0]
    assert "the previous file is unchanged" in lines[0]
    assert lines[1:] == ["['chat.lm2s', 'filler']", "True"]


@pytest.fixture
def open_folder():
    """A folder that any user can reach (pytest's own are private to one)."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_no_permission(open_folder):
    path = open_folder / "chat.lm2s"
    write_session(path, forge.record(SHAPE))
    before = path.read_bytes()
    code = """
from lm2.runtime.statefile.file import read_session
from lm2.runtime.statefile.lock import SessionLock
if os.getuid() == 0:
    os.setgid(65534); os.setuid(65534)
for act in (lambda: save(1), lambda: SessionLock(path).acquire(), lambda: read_session(path, None)):
    try:
        act()
        print("allowed")
    except Exception as error:
        print(type(error).__name__, error)
"""
    path.chmod(0o000)
    open_folder.chmod(0o555)
    lines = finish(child(code, path)).splitlines()
    path.chmod(0o644)
    assert lines[0].startswith("WriteError") and "no permission" in lines[0] and str(path) in lines[0]
    assert lines[1].startswith("WriteError") and "no permission" in lines[1] and str(path) in lines[1]
    assert lines[2].startswith(SessionReadError.__name__) and str(path) in lines[2]
    assert path.read_bytes() == before and list(open_folder.iterdir()) == [path]


def test_folder_missing(tmp_path):
    path = tmp_path / "none" / "chat.lm2s"
    with pytest.raises(WriteError, match="the folder does not exist: create it first") as caught:
        write_session(path, forge.record())
    assert str(path) in str(caught.value) and not path.parent.exists()


def test_folder_in_the_way(tmp_path):
    path = tmp_path / "chat.lm2s"
    path.mkdir()
    with pytest.raises(WriteError):
        write_session(path, forge.record())
    assert list(tmp_path.iterdir()) == [path]


def test_a_thousand_saves_leave_one_file_of_one_size(path):
    record, sizes, inodes = forge.record(SHAPE), set(), set()
    descriptors = len(os.listdir("/dev/fd"))
    for n in range(1000):
        sizes.add(write_session(path, replace(record, meta=replace(record.meta, draws=1000 + n))))
        inodes.add(path.stat().st_ino)
    assert sizes == {path.stat().st_size} and len(inodes) > 1
    assert list(path.parent.iterdir()) == [path]
    assert len(os.listdir("/dev/fd")) == descriptors
    assert read_session(path, EXPECTED).meta.draws == 1999


def test_reading_while_another_saves(path):
    """A reader without the lock sees one whole save or the next, never a mixture."""
    stop = threading.Event()

    def save():
        n = 0
        while not stop.is_set():
            write_session(path, forge.record(SHAPE, replace(forge.META, draws=n, model=f"m{n}")))
            n += 1

    writer = threading.Thread(target=save)
    writer.start()
    try:
        seen = [read_session(path, EXPECTED).meta for _ in range(300)]
    finally:
        stop.set()
        writer.join()
    assert all(m.model in ("tiny", f"m{m.draws}") for m in seen) and len({m.draws for m in seen}) > 1


def test_a_link_is_followed_and_the_mode_is_kept(path):
    path.chmod(0o600)
    link = path.parent / "link.lm2s"
    link.symlink_to(path)
    write_session(link, forge.record(SHAPE, replace(forge.META, draws=5)))
    assert link.is_symlink() and path.stat().st_mode & 0o777 == 0o600
    assert read_session(path, EXPECTED).meta.draws == 5
