"""`lm2 ARGS` in a fork of this warmed process, with pipes or whatever else for its streams: a process of its own without the seconds of imports."""

import io
import os
import signal
import sys

from operations import lm2


def start(args: list[object], stdin: int | None = None, stdout: int | None = None, stderr: int | None = None, closed: tuple[int, ...] = ()) -> int:
    """Start it; its id. stdin, stdout, stderr: descriptors, which stay open here. closed: streams that are closed before it begins."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, given in enumerate((stdin, stdout, stderr)):
            if given is not None:
                os.dup2(given, number)
        os.closerange(3, 256)
        for number in closed:
            os.close(number)
        sys.stdin = None if 0 in closed else io.TextIOWrapper(open(0, "rb", closefd=False), "utf-8")  # noqa: SIM115
        sys.stdout = None if 1 in closed else io.TextIOWrapper(open(1, "wb", closefd=False), "utf-8")  # noqa: SIM115
        sys.stderr = None if 2 in closed else io.TextIOWrapper(open(2, "wb", closefd=False), "utf-8", "backslashreplace", write_through=True)  # noqa: SIM115
        sys.__stdout__ = sys.stdout
        os._exit(lm2(*args))
    except BaseException as error:
        os.write(2, f"ESCAPED {error!r}\n".encode())
        os._exit(99)


def end(pid: int) -> int:
    """Wait for it; its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def read_all(fd: int) -> bytes:
    """Everything until the other side closes; closes this one."""
    with os.fdopen(fd, "rb") as f:
        return f.read()
