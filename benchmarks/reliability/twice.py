"""Two processes on one session: `python benchmarks/reliability/twice.py chat --rounds 50 --seed 1`.

Each round starts two chats on one session file, the second a random moment after the first; in every third round the first is killed somewhere in between. The one that does
not get the file must end with exit code 1 and one line that names it and says by whom it is used; afterwards the session must hold every turn that
was acknowledged, in order, whole turns only. Linux and macOS.
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

TURNS = 3


def one_round(n: int, rng: random.Random, model: Path, file: Path, held: list[str], counts: Counter[str]) -> list[str]:
    """Both chats of a round. held: messages the session had; returns those it must have, in order."""
    started: list[tuple[int, int, list[str]]] = []
    killed = n % 3 == 2
    for name in "ab":
        said = [f"{n}{name}{i}" for i in range(TURNS)]
        (give, into), (out, take) = os.pipe(), os.pipe()
        os.write(into, "".join(s + "\n" for s in said).encode())
        os.close(into)
        errors = os.open(file.with_name(f"{name}.txt"), os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        pid = process.start(["chat", model, "--session", file, "--temp", 0, "--max-tokens", 4, "--threads", 1], give, take, errors)
        for fd in (give, take, errors):
            os.close(fd)
        started.append((pid, out, said))
        time.sleep(rng.uniform(0, 0.15))
    if killed:
        os.kill(started[0][0], signal.SIGKILL)
    found = [m["content"] for m in _transcript(file)] if not killed else []
    del found
    least: list[list[str]] = []
    most: list[list[str]] = []
    for name, (pid, out, said) in zip("ab", started, strict=True):
        answers = process.read_all(out).count(b"\n")
        code, line = process.end(pid), file.with_name(f"{name}.txt").read_text()
        if code == 0:
            counts["done"] += 1
            least.append(said)
            most.append(said)
        elif code == -signal.SIGKILL:
            counts["killed"] += 1
            least.append(said[: max(0, answers - 1)])  # an answer is shown before its turn is saved
            most.append(said)
        else:
            counts["refused"] += 1
            kit.need(code == 1 and line.count("\n") == 1 and "is in use" in line and str(file) in line and answers == 0, f"exit code {code}: {line!r}")
    have = [m["content"] for m in _transcript(file) if m["role"] == "user"]
    kit.need(have[: len(held)] == held, f"turns of an earlier round are gone: {held} {have}")
    new = have[len(held) :]
    options = [[a + b for a in _between(least[0], most[0]) for b in _between(least[1], most[1])]] if len(least) == 2 else [_between(least[0], most[0])] if least else [[[]]]
    both = options[0] + ([b + a for a in _between(least[0], most[0]) for b in _between(least[1], most[1])] if len(least) == 2 else [])
    kit.need(new in both, f"the session has {new}, acknowledged were {least}")
    kit.need([m["role"] for m in _transcript(file)] == ["user", "assistant"] * len(have), "half of a turn")
    return have


def _between(least: list[str], most: list[str]) -> list[list[str]]:
    return [most[:k] for k in range(len(least), len(most) + 1)]


def _transcript(file: Path) -> list[dict[str, str]]:
    return read_session(file, None).document["transcript"] if file.exists() else []


def main() -> int:
    a = kit.arguments(__doc__ or "", ["chat"], "rounds", 50).parse_args()
    rng, counts, wrong = random.Random(a.seed), Counter[str](), []
    root, began = Path(tempfile.mkdtemp(prefix="lm2-twice-")), time.monotonic()
    try:
        model, file = tiny_model.make(root / "model"), root / "s.lm2s"
        held: list[str] = []
        for n in range(a.count):
            if n % 10 == 0:
                held = []
                file.unlink(missing_ok=True)
            try:
                held = one_round(n, rng, model, file, held, counts)
            except kit.Wrong as error:
                wrong.append(f"round {n}: {error}")
                held = [m["content"] for m in _transcript(file) if m["role"] == "user"]
        left = sorted(p.name for p in root.iterdir() if p.name not in ("model", "a.txt", "b.txt", "s.lm2s", "s.lm2s.lock", ".s.lm2s.partial"))
        if left:
            wrong.append(f"left behind: {left}")
    finally:
        shutil.rmtree(root, ignore_errors=True)
    shown = ", ".join(f"{k} {v}" for k, v in sorted(counts.items()))
    print(f"chat: {a.count} rounds of two, seed {a.seed}: {shown}; {len(wrong)} findings; {time.monotonic() - began:.0f} s")
    print("\n".join(wrong[:10]), end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
