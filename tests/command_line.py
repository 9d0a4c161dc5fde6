"""The `lm2` command in this process or in one of its own, as a user's shell would call it."""

import io
import os
import subprocess
import sys
import time
from typing import NamedTuple

# A test run that was itself started in the background ignores Ctrl-C, and so would every process it starts.
START = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\nfrom lm2.cli import main; main()"


class Result(NamedTuple):
    code: int
    out: str
    err: str

    def fails(self, *words, code=1):
        """It must have failed with one line on stderr that has every word; returns that line."""
        lines = [line for line in self.err.splitlines() if not line.startswith("seed ")]
        assert self.code == code and len(lines) == 1, self
        assert lines[0].startswith("lm2: ") and "Traceback" not in self.err and "unexpected" not in self.err, self
        for word in words:
            assert str(word) in lines[0], f"{word!r} is not in {lines[0]!r}"
        return lines[0]


def call(monkeypatch, args, stdin=b"", stdout=None):
    """`lm2 ARGS` in this process, through the same entry point, with pipes for a terminal; stdin None is one that was closed."""
    from lm2 import cli

    out, err = stdout or io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace")
    given = None if stdin is None else io.TextIOWrapper(io.BytesIO(stdin.encode() if isinstance(stdin, str) else stdin), "utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["lm2", *map(str, args)])
        patch.setattr(sys, "stdin", given)
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        patch.delenv("LM2_DEBUG", raising=False)
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        out.flush()
        err.flush()
    return Result(code or 0, out.buffer.getvalue().decode("utf-8", "replace"), err.buffer.getvalue().decode())


def spawn(args, before="", **options):
    """`lm2 ARGS` as a process; stdin, stdout and stderr are pipes unless said otherwise. before: Python to run in it first."""
    options = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) | options
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | options.pop("env", {})
    return subprocess.Popen([sys.executable, "-c", f"{before}\n{START}", *map(str, args)], env=env, **options)


def shell(args, stdin=b"", before="", **options):
    """`lm2 ARGS` as a process, run to its end."""
    with spawn(args, before, **options) as process:
        out, err = process.communicate(stdin, timeout=120)
    return Result(process.returncode, out.decode("utf-8", "replace"), err.decode("utf-8", "replace"))


def wait_for(condition, what, seconds=60):
    """Wait until `condition()` holds, and return what it gave."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.02)
    return value
