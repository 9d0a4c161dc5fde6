"""Writing files and folders so that a kill at any moment leaves either the old one or the new one, whole.

Knows the file system only. The order is: temporary neighbour, flush, fsync, rename, fsync of the folder.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .errors import WriteError

_REMEDY = {
    errno.ENOSPC: "the disk is full: free some space or choose another folder",
    errno.EDQUOT: "the disk quota is used up: free some space or choose another folder",
    errno.EACCES: "no permission: choose a folder you may write to",
    errno.EPERM: "no permission: choose a folder you may write to",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.ENOENT: "the folder does not exist: create it first",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
}


def write_error(path: Path, error: OSError, kept: str) -> WriteError:
    """A WriteError for `path` that says what happened, what was kept, and the remedy."""
    remedy = _REMEDY.get(error.errno or 0, "check the path and try again")
    return WriteError(f"cannot write {path}: {error.strerror or error}; {kept}; {remedy}")


def fsync_folder(folder: Path) -> None:
    """Make a rename inside `folder` durable. A no-op where folders cannot be opened (Windows)."""
    try:
        fd = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(fd)
    except OSError:
        pass
    finally:
        os.close(fd)


def write_file(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Write `path` atomically: `fill` gets a binary file to write into.

    Raises WriteError naming the path; the previous file, if any, is then unchanged.
    The temporary has one fixed name per target, so a killed write leaves at most one stray, which the next write replaces.
    """
    temporary = path.with_name(f".{path.name}.partial")
    kept = "the previous file is unchanged" if path.exists() else "nothing was written"
    try:
        try:
            with open(temporary, "wb") as f:
                fill(f)
                f.flush()
                os.fsync(f.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        if isinstance(error, WriteError):
            raise
        raise write_error(path, error, kept) from error
    fsync_folder(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Build a folder next to `path` and move it into place when the block ends well.

    Yields the temporary folder. On any error or a kill, `path` does not exist (a stray `.NAME.partial` is removed by the next run).
    Raises WriteError if `path` exists already and is not an empty folder, or cannot be written.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise WriteError(f"{path} exists already: choose another destination or remove it first")
    temporary = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if temporary.exists():
            shutil.rmtree(temporary)
        temporary.mkdir()
        try:
            yield temporary
            for entry in filter(Path.is_file, temporary.rglob("*")):
                with open(entry, "rb") as f:
                    os.fsync(f.fileno())
            if path.exists():
                path.rmdir()
            os.replace(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as error:
        if isinstance(error, WriteError):
            raise
        raise write_error(path, error, "nothing was written") from error
    fsync_folder(path.parent)
