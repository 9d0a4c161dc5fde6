"""A full disk and a missing permission: `python benchmarks/reliability/disk.py save --tries 60 --seed 1`.

Full: the command runs on a tmpfs of its own whose free space is drawn from nothing to what it needs, and on one whose free inodes are counted up. No permission: as a
user who may not write to the folder (EACCES), and on a file system mounted read-only (EROFS). Each time: exit code 1, one line on stderr that names
the destination and a remedy, what was there before unchanged, nothing left behind; and with room the same command succeeds. Linux, as root or where
users may have a mount namespace of their own.
"""

import ctypes
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import kit
from operations import OPERATIONS, Operation, digest, quiet

PAGE = 4096


def own_mounts() -> None:
    """Go on in a mount namespace of our own, so that no mount is seen outside or outlives us."""
    if os.environ.get("LM2_RELIABILITY_MOUNTS"):
        return
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    os.environ["LM2_RELIABILITY_MOUNTS"] = "1"
    os.execvp("unshare", ["unshare", *user, "--mount", sys.executable, *sys.argv])


def mount(place: Path, *options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "none", str(place)], check=True)


def run(operation: Operation, place: Path, bound: bool = False) -> tuple[int, str]:
    """The command in a process of its own, `bound` by permissions; exit code and stderr."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            if bound:
                as_any_user()
            code, said = quiet(lambda: operation.run(place))
        except BaseException as error:
            code, said = 99, repr(error)
        os.write(writing, said.encode()[:60000])
        os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as f:
        said = f.read().decode()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said


def as_any_user() -> None:
    """Give up root's right to write where permissions say no; the user stays the same, so that Python's own files can be read."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS: a program that is started gets no more than this one has
    header, data = struct.pack("<Ii", 0x20080522, 0), bytes(24)
    kit.need(libc.capset(header, data) == 0, "capabilities cannot be given up")


def check_line(operation: Operation, code: int, said: str, *words: str) -> str:
    """The error line, if it is one and says what is needed. Raises Wrong."""
    lines = [line for line in said.splitlines() if line.startswith("lm2: ")]
    kit.need(code == 1 and len(lines) == 1 and said.strip().endswith(lines[0]), f"exit code {code}, stderr {said!r}")
    kit.need("unexpected" not in said and "Traceback" not in said, f"stderr {said!r}")
    for word in (operation.word, *words):
        kit.need(word in lines[0], f"{word!r} is not in {lines[0]!r}")
    return lines[0]


def state(place: Path) -> dict[str, str]:
    """Every file and its digest, but locks."""
    return {str(p.relative_to(place)): digest(p.parent, p.name) for p in sorted(place.rglob("*")) if p.is_file() and not p.name.endswith(".lock")}


def kept(operation: Operation, place: Path, before: dict[str, str]) -> None:
    """Raise Wrong unless what was there before is unchanged, or for training still good, and nothing temporary is left."""
    kit.equal("left behind", operation.left(place), [])
    found = operation.whole(place)
    kit.need(found != "none" or not operation.keeps, "what was there is gone")
    if operation.name not in ("train", "pull"):
        kit.equal("files", state(place), before)


def full(operation: Operation, tries: int, seed: int, place: Path) -> tuple[str, list[str]]:
    """Room for less than it needs, `tries` times, each ending in an error; then room enough."""
    rng, wrong, refused, passed = random.Random(f"{operation.name}/{seed}"), [], 0, 0
    mount(place, "size=1g")
    operation.ready(place)
    code, said = run(operation, place)
    kit.need(code == 0, said)
    extra = max(16 * PAGE, 2 * used(place), 3 << 20 if operation.name == "build-ops" else 0)  # more than it needs, with what it has meanwhile
    subprocess.run(["umount", str(place)], check=True)
    inodes = list(range(1, 1 + max(2, tries // 4)))
    for n in range(tries):
        if n < len(inodes):
            what = f"{inodes[n]} inodes free"
            mount(place, "size=1g")
            operation.ready(place)
            count = sum(1 for _ in place.rglob("*")) + 1 + inodes[n]
            subprocess.run(["mount", "-o", f"remount,size=1g,nr_inodes={count}", str(place)], check=True)
        else:
            room = rng.randrange(0, extra, PAGE)
            what = f"{room} of {extra} bytes free"
            mount(place, "size=1g")
            operation.ready(place)
            subprocess.run(["mount", "-o", f"remount,size={used(place) + room}", str(place)], check=True)
        before = state(place)
        try:
            code, said = run(operation, place)
            if code == 0:
                kit.equal("what is there", operation.whole(place), "new")
                passed += 1
            else:
                check_line(operation, code, said, "disk is full")
                kept(operation, place, before)
                refused += 1
                subprocess.run(["mount", "-o", "remount,size=1g,nr_inodes=1000000", str(place)], check=True)
                code, said = run(operation, place)
                kit.need(code == 0 and operation.whole(place) == "new" and not operation.left(place), f"with room: {code} {said} {operation.left(place)}")
        except Exception as error:
            wrong.append(f"{what}: {type(error).__name__}: {error}")
        subprocess.run(["umount", "-l", str(place)], check=True)
    return f"{tries} times too little room: {refused} refused, {passed} fitted", wrong


def used(place: Path) -> int:
    stat = os.statvfs(place)
    return (stat.f_blocks - stat.f_bfree) * stat.f_frsize


def forbidden(operation: Operation, place: Path) -> tuple[str, list[str]]:
    """A folder that may not be written to, and a file system that is read-only."""
    wrong, lines = [], []
    for what, words in (("EACCES", "permission"), ("EROFS", "read-only")):
        mount(place, "size=1g", "mode=755")
        operation.ready(place)
        before = state(place)
        try:
            for folder in (place, *(p for p in place.rglob("*") if p.is_dir())):
                folder.chmod(0o555 if what == "EACCES" else 0o755)
            if what == "EROFS":
                subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
            code, said = run(operation, place, what == "EACCES")
            lines.append(check_line(operation, code, said, words))
            kit.equal("files", state(place), before)
        except Exception as error:
            wrong.append(f"{what}: {type(error).__name__}: {error}")
        subprocess.run(["umount", "-l", str(place)], check=True)
    return f"no permission and read-only: {len(lines)} of 2 in one line", wrong


def main() -> int:
    parser = kit.arguments(__doc__ or "", list(OPERATIONS), "tries", 60)
    a = parser.parse_args()
    own_mounts()
    failed = 0
    for name in kit.chosen(a.names, list(OPERATIONS)):
        root = Path(tempfile.mkdtemp(prefix="lm2-disk-"))
        root.chmod(0o755)
        try:
            for folder in ("from", "place"):
                (root / folder).mkdir()
            operation, began = OPERATIONS[name](root / "from"), time.monotonic()
            said, wrong = full(operation, a.count, a.seed, root / "place")
            more, other = forbidden(operation, root / "place")
            failed += bool(wrong + other)
            print(f"{name}: seed {a.seed}: {said}; {more}; {len(wrong + other)} findings; {time.monotonic() - began:.0f} s", flush=True)
            print("\n".join((wrong + other)[:20]), end="\n" if wrong + other else "", flush=True)
        finally:
            shutil.rmtree(root, ignore_errors=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
