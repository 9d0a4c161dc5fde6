"""What the benchmarks share: the machine in a line, a text everybody has, timing one operator beside others, and Markdown tables. Knows nothing of what is measured."""

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version


def machine() -> str:
    """CPU model, cores and operating system, without the host's name."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            model = next((line.split(":", 1)[1].strip() for line in f if line.startswith("model name")), model)
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"


def versions(*names: str) -> str:
    """`torch 2.13.0, transformers 5.23.0`"""
    found = []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} not installed")
    return ", ".join(found)


def long_text() -> str:
    """About 113,000 SmolLM2 tokens of English that come with every CPython: the language reference as pydoc shows it."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[key] for key in sorted(topics))


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def command() -> str:
    """The command line that produced what follows."""
    return "python " + " ".join([os.path.relpath(sys.argv[0]), *sys.argv[1:]])


def require_close(what: str, got: object, want: object, gate: float) -> None:
    """Before a speed is reported: |got - want| / |want| over all numbers is at most `gate`. Else the benchmark ends here, with exit code 1."""
    import numpy as np

    a, b = np.asarray(got, np.float64), np.asarray(want, np.float64)
    off = float(np.linalg.norm(a - b) / np.linalg.norm(b)) if a.shape == b.shape else float("inf")
    if not off <= gate:
        sys.exit(f"no speed is reported: {what} is off by {off:.2g} of its size, the gate is {gate:g}")


def one_operator(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The options of a benchmark of one operator: rows of a call, threads, rounds, and how much memory the copies of its node read."""
    for name, kind, default in (("rows", int, 1), ("threads", int, 1), ("repeats", int, 15), ("megabytes", float, 48)):
        parser.add_argument(f"--{name}", type=kind, default=default)
    return parser


def medians(runs: dict[str, Callable[[], object]], repeats: int, threads: int) -> dict[str, float]:
    """Median seconds of each run, interleaved, two rounds of warming up left out: processor time of one thread, else time passed."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    clock = time.thread_time if threads == 1 else time.perf_counter
    for repeat in range(repeats + 2):
        for name, run in runs.items():
            start = clock()
            run()
            if repeat >= 2:
                times[name].append(clock() - start)
    return {name: statistics.median(found) for name, found in times.items()}
