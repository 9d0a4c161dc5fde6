"""Writing files and folders so that a kill at any moment leaves either the old one or the new one, whole.

Knows the file system only. The order is: temporary neighbour, flush, fsync, rename, fsync of the folder. Links are followed to what they point
to; what is there and is no regular file (a device, a pipe, a folder) is never replaced.
"""

import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .errors import WriteError
from .oserrors import remedy, shown

NAME_BYTES = 255
MOVING = ".lm2.partial-moving"  # names on their way into a folder that was there
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)


def write_error(path: Path, error: OSError, kept: str) -> WriteError:
    """A WriteError for `path` that says what happened, what was kept, and the remedy."""
    what = "the folder does not exist: create it first" if error.errno == errno.ENOENT else remedy(error)
    return WriteError(f"cannot write {shown(path)}: {error.strerror or error}; {kept}; {what}")


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


def check_file(path: Path) -> Path:
    """The regular file that writing `path` would make or replace, links followed.

    Raises WriteError naming the path for anything that is there and must not be replaced: a folder, a device, a pipe, a socket, a link that goes
    round in a circle, and the file that this process's own output goes to.
    """
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return Path(os.path.realpath(path))
    except OSError as error:
        raise write_error(path, error, "nothing was written") from None
    if not stat.S_ISREG(there.st_mode):
        raise WriteError(f"cannot write {shown(path)}: it is {_kind(there)}, which stays as it is; choose the name of a file")
    if any(_is_stream(fd, there) for fd in (1, 2)):
        raise WriteError(f"cannot write {shown(path)}: this command's own output goes there; choose another file")
    return Path(os.path.realpath(path))


def _kind(there: os.stat_result) -> str:
    return next((words for test, words in _KINDS if test(there.st_mode)), "no regular file")


def _is_stream(fd: int, there: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), there)
    except OSError:
        return False


def write_file(path: Path, fill: Callable[[BinaryIO], object], follow: bool = True) -> None:
    """Write `path` atomically: `fill` gets a binary file to write into. A link is followed to the file it points to (or replaced: `follow`).

    Raises WriteError naming the path, also for what `check_file` refuses; the previous file, if any, is then unchanged.
    The temporary has one fixed name per target, so a killed write leaves at most one stray, which the next write replaces.
    """
    target = check_file(path)
    if not follow:
        target = path
    temporary = target.with_name(_partial(target.name))
    kept = "the previous file is unchanged" if target.exists() else "nothing was written"
    try:
        try:
            temporary.unlink(missing_ok=True)
            with open(temporary, "wb") as f:
                fill(f)
                f.flush()
                os.fsync(f.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        if isinstance(error, WriteError):
            raise
        raise write_error(path, error, kept) from error
    fsync_folder(target.parent)


def check_new_folder(path: Path) -> Path:
    """The folder that `new_folder(path)` would make or fill, links followed. Raises WriteError where it could not, before any work is done."""
    target = check_folder(path)
    if target.is_dir() and _strange(target):
        raise WriteError(f"{shown(path)} exists already: choose another destination or remove it first")
    return target


def check_folder(path: Path) -> Path:
    """The folder that `path` is or would become, links followed. Raises WriteError where nothing could be written into it."""
    target = Path(os.path.realpath(path))
    try:
        if any(len(os.fsencode(part)) > NAME_BYTES for part in target.parts):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        if os.path.lexists(target):
            if target.is_symlink():  # realpath leaves a circle as it is
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            there = os.stat(target)
            if stat.S_ISREG(there.st_mode):
                raise WriteError(f"{shown(path)} exists already: choose another destination or remove it first")
            if not stat.S_ISDIR(there.st_mode):
                raise WriteError(f"cannot write {shown(path)}: it is {_kind(there)}, which stays as it is; choose the name of a new folder")
            place = target
        else:
            place = next(p for p in target.parents if os.path.lexists(p))
            if not place.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(place, os.W_OK | os.X_OK):
            code = errno.EROFS if os.name == "posix" and os.statvfs(place).f_flag & os.ST_RDONLY else errno.EACCES
            raise OSError(code, os.strerror(code))
    except OSError as error:
        if isinstance(error, WriteError):
            raise
        raise write_error(path, error, "nothing was written") from None
    return target


def folder_name(path: Path) -> str:
    """What a new folder at `path` is called: its last part, that of the folder it leads to for `.` and `..`."""
    return shown(path.name if path.name not in ("", "..") else Path(os.path.realpath(path)).name or "model")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Build a folder next to `path` and move it into place when the block ends well.

    Yields the temporary folder. On any error or a kill, `path` does not exist (a stray `.NAME.partial` is removed by the next run).
    An empty folder that is there (`.`, a mount point, what a link leads to) is filled, not replaced: built inside it, then moved up entry by
    entry, what makes it a model last; it is empty again after an error.
    Raises WriteError if `path` exists already and is not an empty folder, or cannot be written.
    """
    target = check_new_folder(path)
    inside = target.is_dir()
    temporary = (target / _partial("lm2")) if inside else target.with_name(_partial(target.name))
    try:
        if not inside:
            target.parent.mkdir(parents=True, exist_ok=True)
        if inside:
            for name in _moved(target):
                _remove(target / name)
        if temporary.exists():
            shutil.rmtree(temporary)
        temporary.mkdir()
        try:
            yield temporary
            for entry in filter(Path.is_file, temporary.rglob("*")):
                with open(entry, "rb") as f:
                    os.fsync(f.fileno())
            if inside:
                _move_up(temporary, target)
            else:
                os.replace(temporary, target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as error:
        if isinstance(error, WriteError):
            raise
        raise write_error(path, error, "nothing was written") from error
    fsync_folder(target if inside else target.parent)


@contextmanager
def scratch_folder(path: Path) -> Iterator[str]:
    """A folder for what is needed while `new_folder(path)` is made, on the same disk: beside it, or inside it where it is there already. One name
    per destination, so that what a killed run left is removed by the next.

    Raises WriteError where it cannot be made.
    """
    target = check_new_folder(path)
    folder = (target / f"{_partial('lm2')}-scratch") if target.is_dir() else target.with_name(_partial(f"{target.name}.scratch"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    except OSError as error:
        raise write_error(path, error, "nothing was written") from error
    try:
        yield str(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move_up(temporary: Path, target: Path) -> None:
    """Move the entries of `temporary` into its parent, a config last: without it the folder is no model. All or none."""
    entries = sorted(temporary.iterdir(), key=lambda p: (p.name.startswith("config."), p.name))
    marker = target / MOVING
    try:
        with open(marker, "w", encoding="utf-8") as f:
            f.write(json.dumps([entry.name for entry in entries]))
            f.flush()
            os.fsync(f.fileno())
        for entry in entries:
            os.rename(entry, target / entry.name)
        temporary.rmdir()
    except BaseException:
        for entry in entries:
            _remove(target / entry.name)
        raise
    finally:
        marker.unlink(missing_ok=True)


def _moved(folder: Path) -> set[str]:
    """Names that a run killed in the middle of moving its entries up may have left; none once the last of them was moved."""
    try:
        names = json.loads((folder / MOVING).read_text(encoding="utf-8"))
        return set(names) if any((folder / _partial("lm2")).iterdir()) else set()
    except (OSError, ValueError):
        return set()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _strange(folder: Path) -> bool:
    """Whether a folder holds anything but what a killed run left in it, or a file system keeps in its own root."""
    ours = _moved(folder) | {"lost+found"}
    return any(entry.name not in ours and not entry.name.startswith(_partial("lm2")) for entry in folder.iterdir())


def _partial(name: str) -> str:
    """The temporary's name for a file or folder of `name`; short where that would be too long for a file system."""
    own = f".{name}.partial"
    if len(os.fsencode(own)) <= NAME_BYTES or len(os.fsencode(name)) > NAME_BYTES:
        return own
    return f".{hashlib.sha256(os.fsencode(name)).hexdigest()[:32]}.partial"
