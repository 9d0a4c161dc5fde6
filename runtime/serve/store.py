"""The folder that sessions go to when nobody uses them, and that outlives the server. Knows names and session files; not when they are written.

KIND/OWNER/ID.lm2s, and ID.json beside it for what belongs to it. One server has it at a time. Files that only save work (chains, responses) are bounded
in bytes, the longest unused out first; named sessions and conversations are never removed but by their owners.
"""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from ...models.atomic import write_error, write_file
from ..statefile.file import read_session
from ..statefile.lock import SessionLock
from ..statefile.record import SessionError

NAMED = ("session", "conversation")
PASSING = ("chain", "response")
JSON_BYTES_MAX = 64 << 20
NEXT = ".next"


class Name(NamedTuple):
    """Of a session: its kind, whose it is, and its id. Each is letters, digits and _ that the server made itself, so a file can be called so."""

    kind: str
    owner: str
    id: str


class Store:
    """Opens, or makes, `folder`. most: bytes of chains and responses. Raises WriteError, or SessionLockedError where another server has it."""

    def __init__(self, folder: Path, most: int):
        self.folder, self.most = folder.absolute(), most
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(folder, error, "nothing was written") from None
        self._lock = SessionLock(folder / "store").acquire()
        self._clean()
        self._size = sum(size for kind in PASSING for _, size, _ in _files(folder / kind))

    def _clean(self) -> None:
        """End or take back what a killed server left half: records not yet in force (`announce`), temporary files, records without their session, responses
        and conversations without their record."""
        for path in self.folder.rglob(f"*{NEXT}"):
            name = Name(path.parent.parent.name, path.parent.name, path.stem)
            if _turns(self.path(name)) == (self.read_json(name, NEXT) or {}).get("turns"):
                self.enact(name)
            else:
                self.retract(name)
        for kind in (*NAMED, *PASSING):
            for path in (self.folder / kind).rglob("*"):
                other = {".json": ".lm2s", ".lm2s": ".json" if kind in ("response", "conversation") else ".lm2s"}.get(path.suffix)
                stray = path.suffix == ".partial" or (other is not None and not path.with_suffix(other).is_file())
                if stray:
                    with suppress(OSError):
                        path.unlink()

    def close(self) -> None:
        self._lock.release()

    def path(self, name: Name, suffix: str = ".lm2s") -> Path:
        return self.folder / name.kind / name.owner / f"{name.id}{suffix}"

    def ready(self, name: Name) -> Path:
        """The path of a session file that is about to be written; its folder is made. Raises WriteError."""
        path = self.path(name)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(path.parent, error, "the session was not saved") from None
        return path

    def has(self, name: Name) -> bool:
        return self.path(name).is_file()

    def used(self, name: Name) -> None:
        """Note that a file was used now."""
        with suppress(OSError):
            os.utime(self.path(name))

    def write_json(self, name: Name, content: Any) -> None:
        """Write what belongs to a session, atomically. Raises WriteError."""
        raw = json.dumps(content, ensure_ascii=False).encode()
        write_file(self.ready(name).with_suffix(".json"), lambda f: f.write(raw))

    def announce(self, name: Name, content: dict[str, Any]) -> None:
        """Write a record that is in force once its session's file has as many turns as `content["turns"]` says. Raises WriteError."""
        raw = json.dumps(content, ensure_ascii=False).encode()
        write_file(self.ready(name).with_suffix(NEXT), lambda f: f.write(raw))

    def enact(self, name: Name) -> None:
        """The record that was announced is in force: its session is written."""
        os.replace(self.path(name, NEXT), self.path(name, ".json"))

    def retract(self, name: Name) -> None:
        """The session was not written: nor was anything said."""
        with suppress(OSError):
            self.path(name, NEXT).unlink()

    def read_json(self, name: Name, suffix: str = ".json") -> Any:
        """What was written with it, or None where there is nothing, or nothing that can be read."""
        path = self.path(name, suffix)
        try:
            if path.stat().st_size > JSON_BYTES_MAX:
                return None
            return json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return None

    def remove(self, name: Name) -> None:
        for suffix in (".lm2s", ".json", NEXT):
            with suppress(OSError):
                self.path(name, suffix).unlink()

    def names(self, kind: str, owner: str) -> list[Name]:
        """Sessions of an owner that have a file, the longest unused first."""
        return [Name(kind, owner, path.stem) for _, _, path in sorted(_files(self.folder / kind / owner))]

    def count(self) -> int:
        """How many named sessions there are, of all owners."""
        return sum(1 for kind in NAMED for _ in _files(self.folder / kind))

    def grown(self, size: int) -> None:
        """A chain or a response of so many bytes was written. Over the limit, the longest unused are removed until a tenth of it is free."""
        self._size += size
        if self._size <= self.most:
            return
        files = sorted(entry for kind in PASSING for entry in _files(self.folder / kind))
        self._size = sum(size for _, size, _ in files)
        for _, size, path in files:
            if self._size <= self.most - self.most // 10:
                break
            for suffix in (".lm2s", ".json"):
                with suppress(OSError):
                    path.with_suffix(suffix).unlink()
            self._size -= size


def _turns(path: Path) -> int | None:
    """Messages that a session file has heard; None where it cannot be read."""
    try:
        return int(read_session(path, None).now.notes["turns"])
    except SessionError:
        return None


def _files(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """(when last used, bytes, path) of the session files under a folder."""
    for path in folder.rglob("*.lm2s"):
        with suppress(OSError):
            there = path.stat()
            yield there.st_mtime, there.st_size, path
