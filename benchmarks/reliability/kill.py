"""Kills commands that write: `python benchmarks/reliability/kill.py save --kills 1000 --seed 1`.

Half of the kills fall at a moment drawn evenly over the time the operation takes; the other half at a call that touches the file system (open, write,
flush, fsync, rename, mkdir, remove ...), before it or after it, drawn evenly over all of them. Then: what is there is the old or the new one, whole;
what else is left has a temporary name; the same command again succeeds and leaves nothing behind. Linux and macOS.
"""

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import kit
from operations import OPERATIONS, Operation, fresh, quiet

CALLS = ("open", "write", "writelines", "flush", "close", "fsync", "replace", "rename", "mkdir", "rmdir", "unlink", "remove", "truncate", "ftruncate", "sendfile",
         "copy_file_range", "utime", "chmod", "fchmod", "link", "symlink", "scandir")  # fmt: skip


def child(operation: Operation, place: Path, at_call: int | None = None, count: Any = None) -> int:
    """Start the operation in a process of its own; its id. at_call: the event at which it kills itself; count: a pipe to tell their number."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        seen = 0

        def event(frame: Any, kind: str, what: Any) -> None:
            nonlocal seen
            if kind in ("c_call", "c_return") and getattr(what, "__name__", "") in CALLS:
                seen += 1
                if seen == at_call:
                    os.kill(os.getpid(), signal.SIGKILL)

        if at_call is not None or count is not None:
            sys.setprofile(event)
        code, said = quiet(lambda: operation.run(place))
        sys.setprofile(None)
        if count is not None:
            os.write(count, str(seen).encode())
        if code:
            (place.parent / "said.txt").write_text(said)
        os._exit(code)
    except BaseException as error:
        (place.parent / "said.txt").write_text(repr(error))
        os._exit(99)


def run_whole(operation: Operation, place: Path) -> float:
    """Run to the end; seconds. Raises Wrong when it fails, when what is there is not the new one, or when something is left behind."""
    began = time.monotonic()
    _, status = os.waitpid(child(operation, place), 0)
    seconds = time.monotonic() - began
    said = place.parent / "said.txt"
    kit.need(status == 0, f"the next run failed: {said.read_text() if said.exists() else status}")
    kit.equal("what is there after a whole run", operation.whole(place), "new")
    kit.equal("left behind", operation.left(place), [])
    return seconds


def calls(operation: Operation, place: Path) -> int:
    """How many events a whole run has."""
    fresh(place, operation)
    reading, writing = os.pipe()
    pid = child(operation, place, count=writing)
    os.close(writing)
    number = int(os.read(reading, 100) or 0)
    os.waitpid(pid, 0)
    os.close(reading)
    return number


def kill(operation: Operation, kills: int, seed: int, place: Path) -> tuple[Counter[str], list[str]]:
    """Kill runs until `kills` have been killed before they ended. How often what was there then, and what was wrong."""
    rng, counts, wrong = random.Random(f"{operation.name}/{seed}"), Counter[str](), []
    fresh(place, operation)
    run_whole(operation, place)
    fresh(place, operation)
    seconds, events = run_whole(operation, place), calls(operation, place)
    counts["calls of a run"] = events
    fresh(place, operation)
    n = -1
    while counts["killed"] < kills and len(wrong) < kills:
        n += 1
        at = rng.randint(1, events) if n % 2 else None
        delay = rng.uniform(0, seconds)
        pid = child(operation, place, at)
        if at is None:
            time.sleep(delay)
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        ended = os.waitstatus_to_exitcode(status)
        where = f"kill {n} ({f'call {at} of {events}' if at else f'after {delay * 1000:.1f} of {seconds * 1000:.1f} ms'})"
        try:
            kit.need(ended in (-signal.SIGKILL, 0), f"it ended with {ended}: {(place.parent / 'said.txt').read_text() if ended > 0 else ''}")
            counts["killed" if ended else "done before"] += 1
            found, left = operation.whole(place), operation.left(place)
            kit.need(found != "none" or not operation.keeps, "what was there is gone")
            counts[f"then {found}"] += 1
            counts["with leftovers"] += bool(left)
            if found == "new" and not operation.keeps and operation.name != "train":
                kit.need(not left or operation.name == "convert-into", f"left beside a whole one: {left}")
            elif operation.name != "save" or n % 10 == 0:
                run_whole(operation, place)
                counts["run again"] += 1
            if operation.name != "save" or n % 10 == 0:
                fresh(place, operation)
            else:
                operation.ready(place)
        except Exception as error:
            wrong.append(f"{where}: {type(error).__name__}: {error}")
            fresh(place, operation)
    return counts, wrong


def main() -> int:
    names = [n for n in OPERATIONS if n != "build-ops"]
    parser = kit.arguments(__doc__ or "", names, "kills", 100)
    parser.add_argument("--in", dest="folder", type=Path, help="a folder on the disk to try [the system's temporary one]")
    a = parser.parse_args()
    failed = 0
    for name in kit.chosen(a.names, names):
        root = Path(tempfile.mkdtemp(prefix="lm2-kill-", dir=a.folder))
        try:
            (root / "from").mkdir()
            operation, began = OPERATIONS[name](root / "from"), time.monotonic()
            counts, wrong = kill(operation, a.count, a.seed, root / "place")
            shown = ", ".join(f"{k} {v}" for k, v in counts.items())
            print(f"{name}: {a.count} kills, seed {a.seed}: {shown}; {len(wrong)} findings; {time.monotonic() - began:.0f} s", flush=True)
            failed += bool(wrong)
            print("\n".join(wrong[:20]), end="\n" if wrong else "", flush=True)
        finally:
            shutil.rmtree(root, ignore_errors=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
