"""Runs numbered inputs in a process that may die: crashes, hangs, memory and errors nobody meant are counted and kept. Knows no format."""

import faulthandler
import json
import mmap
import os
import resource
import select
import signal
import struct
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

from kit import Wrong

SECONDS_MAX = 5.0
GROWTH_BYTES_MAX = 1 << 30
_STATE = struct.Struct("<qqqqdd")  # index, accepted, refused, peak growth in KiB, when the input began, slowest


@dataclass
class Outcome:
    """What came of a run. findings: one of each kind, as (key, index, text)."""

    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    slowest: float = 0.0
    growth_mib: int = 0
    seconds: float = 0.0
    findings: list[tuple[str, int, str]] = field(default_factory=list)


def watch(count: int, one: Callable[[int], bool], first: int = 0) -> Outcome:
    """Call `one(index)`, which says whether the input was accepted, for every index; each may take 5 seconds and 1 GiB more than at first."""
    began, out, at = time.monotonic(), Outcome(inputs=count), first
    seen: set[str] = set()
    while at < first + count:
        shared = mmap.mmap(-1, 4096)
        shared[: _STATE.size] = _STATE.pack(at, 0, 0, 0, time.monotonic(), 0.0)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            _work(shared, writing, at, first + count, one)
        os.close(writing)
        text, hung = _listen(child, reading, shared)
        index, accepted, refused, growth, _, slowest = _STATE.unpack(shared[: _STATE.size])
        _, status = os.waitpid(child, 0)
        out.accepted, out.refused = out.accepted + accepted, out.refused + refused
        out.slowest, out.growth_mib = max(out.slowest, slowest), max(out.growth_mib, growth >> 10)
        found = [json.loads(line) for line in text.splitlines()]
        if hung:
            found.append([f"hang over {SECONDS_MAX:.0f} s", index, hung])
            out.slowest = max(out.slowest, SECONDS_MAX)
        elif status:
            number = os.waitstatus_to_exitcode(status)
            name = signal.Signals(-number).name if number < 0 else f"exit code {number}"
            found.append([f"crash {name}", index, ""])
        for key, number, what in found:
            if key not in seen or key.startswith(("hang", "crash")):
                seen.add(key)
                out.findings.append((key, number, what))
        at = index + 1
    out.seconds = time.monotonic() - began
    return out


def _listen(child: int, reading: int, shared: mmap.mmap) -> tuple[str, str]:
    """What the child wrote until it ended; and, if it was stopped for taking too long, where it was."""
    parts, hung = [], ""
    while True:
        ready, _, _ = select.select([reading], [], [], 0.5)
        if ready:
            block = os.read(reading, 1 << 16)
            if not block:
                break
            parts.append(block)
        began = _STATE.unpack(shared[: _STATE.size])[4]
        if time.monotonic() - began > SECONDS_MAX and not hung:
            hung = f"after {time.monotonic() - began:.1f} s"
            os.kill(child, signal.SIGKILL)
    os.close(reading)
    return b"".join(parts).decode(), hung


def _work(shared: mmap.mmap, writing: int, at: int, end: int, one: Callable[[int], bool]) -> None:
    faulthandler.disable()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", encoding="ascii") as f:
        have = int(f.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (have + (4 << 30), most))
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    accepted = refused = 0
    slowest = 0.0
    for index in range(at, end):
        began = time.monotonic()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        shared[: _STATE.size] = _STATE.pack(index, accepted, refused, before - base, began, slowest)
        try:
            if one(index):
                accepted += 1
            else:
                refused += 1
        except BaseException as error:
            _tell(writing, _key(error), index, "".join(traceback.format_exception(error))[-3000:])
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        if grown > GROWTH_BYTES_MAX >> 10:
            _tell(writing, "memory", index, f"{grown >> 10} MiB for one input")
        slowest = max(slowest, time.monotonic() - began)
    last = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    shared[: _STATE.size] = _STATE.pack(end - 1, accepted, refused, last - base, time.monotonic(), slowest)
    os._exit(0)


def _tell(writing: int, key: str, index: int, text: str) -> None:
    os.write(writing, (json.dumps([key, index, text]) + "\n").encode())


def _key(error: BaseException) -> str:
    """What makes two errors the same fault: the class, and the line they came from."""
    if isinstance(error, Wrong):
        return "wrong: " + " ".join(str(error).split())[:40]
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "reliability" not in f.filename] or frames
    return f"{type(error).__name__} at {os.path.basename(own[-1].filename)}:{own[-1].lineno}" if own else type(error).__name__
