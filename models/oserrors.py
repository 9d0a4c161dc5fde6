"""What the operating system refused, in one line with a remedy. Knows error numbers, no file of ours."""

import errno
import os
from pathlib import Path

from .errors import LM2Error

_REMEDY = {
    errno.ENOSPC: "the disk is full: free some space or choose another folder",
    errno.EDQUOT: "the disk quota is used up: free some space or choose another folder",
    errno.EACCES: "no permission: choose a place you may use, or change its permissions",
    errno.EPERM: "no permission: choose a place you may use, or change its permissions",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.ENOENT: "check the path and try again",
    errno.ENOTDIR: "a part of the path is a file, not a folder: choose another path",
    errno.EISDIR: "it is a folder: give a file",
    errno.EEXIST: "something of that name is in the way: choose another path",
    errno.ENOTEMPTY: "something of that name is in the way: choose another path",
    errno.ENAMETOOLONG: "a name has at most 255 bytes, a path about 4,000: choose a shorter one",
    errno.ELOOP: "its links go round in a circle: give what they should point to",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n)",
    errno.ENFILE: "too many files are open: close other programs",
    errno.ENOMEM: "memory is used up: close other programs",
    errno.EIO: "the disk or the terminal failed: check it, or choose another folder",
    errno.EBUSY: "it is in use: close what uses it, or choose another path",
    errno.ETXTBSY: "it is in use: close what uses it, or choose another path",
    errno.EXDEV: "it lies on another file system: choose another path",
    errno.EFBIG: "a file may not become so large here: choose another folder, or raise the limit (ulimit -f)",
    errno.ENXIO: "nothing is there to read or write it: give a file",
    errno.EPIPE: "whoever read it has stopped",
}


def remedy(error: OSError, default: str = "check the path and try again") -> str:
    """What to do about `error`."""
    return _REMEDY.get(error.errno or 0, default)


def shown(path: str | bytes | os.PathLike[str]) -> str:
    """A path as text that can be printed and kept as UTF-8: bytes that are no UTF-8 as `\\xff`."""
    try:
        return os.fsencode(path).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # other lone surrogates
        return os.fspath(path).encode("utf-8", "backslashreplace").decode()  # type: ignore[union-attr]


def utf8_path(folder: Path) -> Path:
    """`folder` under a name that libraries open which take UTF-8 only: its own, or, for as long as the process, a number of its own.

    Raises LM2Error naming the folder where the system has no such numbers.
    """
    if shown(folder) == str(folder):
        return folder
    if not os.path.isdir("/proc/self/fd"):
        raise LM2Error(f"{shown(folder)}: the name is not UTF-8, which a library that opens it needs: rename it")
    return Path(f"/proc/self/fd/{os.open(folder, os.O_RDONLY)}")


def described(error: OSError) -> str:
    """`error` as one line: the path where it is known, what failed, and the remedy."""
    what = error.strerror or str(error) or type(error).__name__
    if error.filename is None or isinstance(error.filename, int):
        return f"{what}: {remedy(error)}" if error.errno else what
    paths = " to ".join(shown(p) for p in (error.filename, error.filename2) if p is not None and not isinstance(p, int))
    return f"{paths}: {what}: {remedy(error)}"
