"""What the benchmarks share: the machine in a line, a text everybody has, and Markdown tables. Knows nothing of what is measured."""

import os
import platform
import sys
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
