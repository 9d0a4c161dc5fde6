"""Chat and generate between pipes: `python benchmarks/reliability/pipes.py chat generate --rounds 20 --seed 1`.

A reader that goes away after a random number of bytes, one that reads a byte at a time, a writer that gives a byte at a time or stops in mid-line, a closed stdin,
a closed stdout, a closed stderr, and a stdout that is full. No traceback, nothing called unexpected, at most one line on stderr, no hang over 20 seconds;
a slow reader gets the bytes that a fast one gets; a session keeps whole turns and opens again. Linux.
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

import kit
import process
import tiny_model

from lm2.runtime.statefile import read_session

LINES = b"".join(b"message %d\n" % i for i in range(4))
FEW = ["--temp", 0, "--threads", 1, "--max-tokens", 12]


class Run:
    """A command with pipes around it. err: what it wrote to stderr, once it ended."""

    def __init__(self, args: list[object], place: Path, closed: tuple[int, ...] = (), stdout: int | None = None):
        give, self.into = os.pipe()
        self.out, take = os.pipe()
        self.errors = place / "err.txt"
        err = os.open(self.errors, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        self.pid = process.start(args, give, take if stdout is None else stdout, err, closed)
        for fd in (give, take, err):
            os.close(fd)

    def write(self, data: bytes, pause: float = 0.0) -> None:
        try:
            for i in range(len(data)) if pause else (0,):
                os.write(self.into, data[i : i + 1] if pause else data)
                time.sleep(pause)
        except BrokenPipeError:
            pass
        os.close(self.into)

    def end(self) -> int:
        """The exit code. Raises Wrong when it does not end, or says something nobody should see."""
        limit = time.monotonic() + 20
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > limit:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise kit.Wrong("it does not end")
            time.sleep(0.005)
        said = self.errors.read_text(encoding="utf-8")
        for word in ("Traceback", "unexpected", "ESCAPED", "Exception ignored"):
            kit.need(word not in said, f"stderr {said!r}")
        kit.need(said.count("\n") <= 1, f"stderr {said!r}")
        return os.waitstatus_to_exitcode(status)


def cases(command: str, model: Path, place: Path, rng: random.Random) -> dict[str, int]:
    """One round of every case; its exit codes."""
    file, codes = place / "s.lm2s", {}
    prompt: list[object] = ["--prompt", "Once"] if command == "generate" else []
    args: list[object] = [command, model, *FEW, *prompt]
    fast = Run(args, place)
    fast.write(LINES)
    whole = process.read_all(fast.out)
    kit.equal("exit code", fast.end(), 0)

    run = Run(args, place)
    run.write(LINES, 0.002)
    kit.need(process.read_all(run.out) == whole, "a slow writer gets another answer")
    kit.equal("exit code of the slow writer", run.end(), 0)

    run = Run(args, place)
    run.write(LINES)
    slow = b""
    while byte := os.read(run.out, 1):
        slow += byte
        time.sleep(0.001)
    os.close(run.out)
    kit.need(slow == whole, "a slow reader gets other bytes")
    kit.equal("exit code of the slow reader", run.end(), 0)

    keep: list[object] = ["--session", file] if command == "chat" else []
    file.unlink(missing_ok=True)
    run = Run([*args, *keep], place)
    run.write(LINES)
    count = rng.randrange(len(whole) + 1)
    got = b""
    while len(got) < count and (block := os.read(run.out, count - len(got))):
        got += block
    os.close(run.out)
    codes["reader gone"] = run.end()
    kit.need(whole.startswith(got), "other bytes before the reader went")
    if file.exists():
        roles = [m["role"] for m in read_session(file, None).document["transcript"]]
        kit.need(roles == ["user", "assistant"] * (len(roles) // 2), f"half of a turn: {roles}")
        again = Run([*args, *keep], place)
        again.write(b"and now?\n")
        process.read_all(again.out)
        kit.equal("exit code of the next chat", again.end(), 0)

    run = Run(args, place)
    run.write(LINES[: rng.randrange(1, len(LINES))])
    process.read_all(run.out)
    codes["stdin cut"] = run.end()
    for name, closed in (("stdin closed", (0,)), ("stdout closed", (1,)), ("stderr closed", (2,)), ("all closed", (0, 1, 2))):
        run = Run(args, place, closed)
        run.write(LINES)
        process.read_all(run.out)
        codes[name] = run.end()
    with open("/dev/full", "wb") as full:
        run = Run(args, place, stdout=full.fileno())
        run.write(LINES)
        os.close(run.out)
        codes["stdout full"] = run.end()
    wanted = {"stdin cut": (0,), "stdin closed": (1,) if command == "chat" else (0,), "stdout closed": (1,), "stderr closed": (0,), "all closed": (1,), "stdout full": (1,),
              "reader gone": (0, 1, 141)}  # fmt: skip
    for name, code in codes.items():
        kit.need(code in wanted[name], f"{name}: exit code {code}")
    return codes


def main() -> int:
    a = kit.arguments(__doc__ or "", ["chat", "generate"], "rounds", 20).parse_args()
    failed = 0
    for name in kit.chosen(a.names, ["chat", "generate"]):
        rng, counts, wrong = random.Random(f"{name}/{a.seed}"), Counter[str](), []
        root, began = Path(tempfile.mkdtemp(prefix="lm2-pipes-")), time.monotonic()
        try:
            model = tiny_model.make(root / "model")
            for n in range(a.count):
                try:
                    counts.update(f"{case} {code}" for case, code in cases(name, model, root, rng).items())
                except kit.Wrong as error:
                    wrong.append(f"round {n}: {error}")
        finally:
            shutil.rmtree(root, ignore_errors=True)
        shown = ", ".join(f"{k}: {v}" for k, v in sorted(counts.items()))
        print(f"{name}: {a.count} rounds of 9 cases, seed {a.seed}: exit codes {shown}; {len(wrong)} findings; {time.monotonic() - began:.0f} s")
        print("\n".join(wrong[:10]), end="\n" if wrong else "")
        failed += bool(wrong)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
