"""Many sessions for a long time: whether the server's memory stays flat, its store whole, and every session says what it would say alone.

    python benchmarks/serving_sessions.py [--model lm2-tiny] [--sessions 1000] [--turns 10] [--clients 4] [--session-bytes 67108864] [--threads 1] [--seed 0]

Every session hears `turns` messages, one a round, the sessions of a round in a drawn order; far fewer fit into --session-bytes, so nearly each turn begins
with a file. Printed after each round: resident bytes of the server, its sessions in memory, the median seconds of a turn. In the middle the server is
killed, and goes on from its store. At the end another server on the same store is asked in every session; the answers, and all before, are compared with those of
`Session.say` in this process.
"""

import argparse
import json
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PLACES = ("kitchen", "garden", "office", "hallway", "bathroom", "bedroom")
ASKED = "Where is Mary?"


def message(session: int, turn: int) -> str:
    """What session number `session` is told in a turn, counted from 0."""
    if turn == 0:
        return f"Mary went to the {PLACES[session % len(PLACES)]}."
    return f"{('John', 'Sandra', 'Daniel')[turn % 3]} moved to the {PLACES[(session + turn) % len(PLACES)]}."


def alone(model: str, threads: int, turns: int) -> list[list[str]]:
    """The answers of each kind of session, by itself."""
    from lm2.runtime.loading import load
    from lm2.runtime.session.session import Session

    loaded = load(model, backend="torch", device="cpu", threads=threads)
    out = []
    for kind in range(len(PLACES)):
        session = Session(loaded)
        out.append([session.say(text) for text in (*(message(kind, turn) for turn in range(turns)), ASKED)])
    return out


def call(url: str, method: str, path: str, body: Any = None, session: str = "") -> Any:
    headers = {"x-session-id": session} if session else {}
    asked = urllib.request.Request(url + path, None if body is None else json.dumps(body).encode(), headers, method=method)
    with urllib.request.urlopen(asked, timeout=600) as answer:
        return json.loads(answer.read())


def say(url: str, session: str, text: str) -> tuple[str, float]:
    """The answer, and how many seconds it took."""
    began = time.perf_counter()
    d = call(url, "POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": text}], "temperature": 0}, session)
    return d["choices"][0]["message"]["content"], time.perf_counter() - began


@contextmanager
def served(given: argparse.Namespace, store: Path) -> Iterator[tuple[str, Any]]:
    """The address of a server on a store that is ready, and its process."""
    import psutil

    command = [sys.executable, "-c", "from lm2.cli import main; main()", "serve", given.model, "--port", "0", "--threads", str(given.threads)]
    command += ["--store", str(store), "--max-sessions", str(given.sessions), "--session-bytes", str(given.session_bytes)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            line = server.stderr.readline()
            found = re.search(r"http://\S+?(?=,)", line)
            line = server.stderr.readline() if found else line
            assert found and "ready" in line, line
            yield found[0], psutil.Process(server.pid)
        finally:
            server.send_signal(signal.SIGTERM)


def round_of(url: str, sessions: list[str], turn: int, order: list[int], given: argparse.Namespace, want: list[list[str]], process: Any) -> int:
    """One turn in every session; how many answers are not the ones that a session alone gave."""
    with ThreadPoolExecutor(given.clients) as pool:
        asked = ASKED if turn == given.turns else ""
        found = list(pool.map(lambda i: (i, *say(url, sessions[i], asked or message(i, turn))), order))
    wrong = sum(text != want[i % len(PLACES)][turn] for i, text, _ in found)
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        here = re.search(r"^lm2_sessions_in_memory (\S+)", answer.read().decode(), re.M)
    rss = process.memory_info().rss
    held = here[1] if here else "?"
    print(f"turn {turn + 1}: {rss / 2**20:.0f} MiB, {held} sessions in memory, {statistics.median(s for *_, s in found):.3f} s a turn, {wrong} wrong", flush=True)
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="lm2-tiny")
    for name, value in (("sessions", 1000), ("turns", 10), ("clients", 4), ("session-bytes", 64 << 20), ("threads", 1), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    want, draw = alone(given.model, given.threads, given.turns), random.Random(given.seed)
    wrong, order = 0, list(range(given.sessions))
    with tempfile.TemporaryDirectory() as folder:
        store, sessions = Path(folder) / "store", []
        for first, last in ((0, given.turns // 2), (given.turns // 2, given.turns)):
            with served(given, store) as (url, process):
                sessions = sessions or [call(url, "POST", "/v1/sessions", {})["id"] for _ in range(given.sessions)]
                for turn in range(first, last):
                    draw.shuffle(order)
                    wrong += round_of(url, sessions, turn, order, given, want, process)
                process.kill()
        files = list(store.rglob("sess_*.lm2s"))
        left = [path.name for path in store.rglob("*") if path.is_file() and path.suffix not in (".lm2s", ".lock")]
        print(f"killed: {len(files)} files, {sum(path.stat().st_size for path in files) / 2**20:.0f} MiB; other files: {left or 'none'}")
        with served(given, store) as (url, process):
            assert {s["id"] for s in call(url, "GET", "/v1/sessions")["data"]} == set(sessions)
            wrong += round_of(url, sessions, given.turns, order, given, want, process)
    print(f"{given.sessions} sessions, {given.sessions * (given.turns + 1)} turns: {wrong} answers differ from those of a session alone")


if __name__ == "__main__":
    main()
