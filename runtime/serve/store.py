"""The folder that sessions go to when nobody uses them, and that outlives the server. Knows names and session files; not when they are written.

KIND/OWNER/ID.lm2s, and ID.json beside it for what belongs to it. One server has it at a time, or several share it. Files that only save work (chains,
responses) are bounded in bytes, the longest unused out first; named sessions and conversations are never removed but by their owners.
"""

import json
import os
from collections.abc import Hashable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any, NamedTuple

from ...models.atomic import write_error, write_file
from ..statefile.file import read_session, stamp
from ..statefile.record import SessionError
from .tenancy import Holding, Tenancy

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
    """Opens, or makes, `folder`. most: bytes of chains and responses. shared: other servers may have the folder too; each named session is then one
    server's at a time (`holding`), and what another wrote is seen by its stamp. Raises WriteError, or SessionLockedError where another server has it."""

    def __init__(self, folder: Path, most: int, shared: bool = False):
        self.folder, self.most, self.shared = folder.absolute(), most, shared
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(folder, error, "nothing was written") from None
        self._tenancy = Tenancy(self.folder, shared, self._clean)
        self.holding = Holding(self._locked, self._settle)
        self._own = token_hex(8)
        self._grown = 0
        self._size = self._measured()

    def _clean(self) -> None:
        """End or take back what a killed server left half: records not yet in force (`announce`), temporary files, records without their session, responses
        and conversations without their record."""
        for path in self.folder.rglob(f"*{NEXT}"):
            self._settle(Name(path.parent.parent.name, path.parent.name, path.stem))
        for path in self.folder.rglob("*.lm2s.lock"):
            if not path.with_suffix("").is_file():
                path.unlink(missing_ok=True)
        for kind in (*NAMED, *PASSING):
            for path in (self.folder / kind).rglob("*"):
                other = {".json": ".lm2s", ".lm2s": ".json" if kind in ("response", "conversation") else ".lm2s"}.get(path.suffix)
                stray = path.suffix == ".partial" or (other is not None and not path.with_suffix(other).is_file())
                if stray:
                    with suppress(OSError):
                        path.unlink()

    def _settle(self, name: Hashable) -> None:
        """End or take back a record that a killed server announced."""
        assert isinstance(name, Name)
        if not self.path(name, NEXT).is_file():
            return
        if _turns(self.path(name)) == (self.read_json(name, NEXT) or {}).get("turns"):
            self.enact(name)
        else:
            self.retract(name)

    def _locked(self, key: Hashable) -> Path | None:
        """What must be locked before a job with this key may run."""
        return self.path(key) if self.shared and isinstance(key, Name) and key.kind in NAMED else None

    def close(self) -> None:
        self._tenancy.leave()

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

    @contextmanager
    def writing(self, name: Name) -> Iterator[Path]:
        """Where to write a session's file, which is in its place when the block ends. Several servers may be writing the same chain. Raises WriteError."""
        path = self.ready(name)
        if not self.shared or name.kind != "chain":
            yield path
            return
        own = path.with_name(f".{name.id}.{self._own}.partial")
        try:
            yield own
            os.replace(own, path)
        except BaseException:
            own.unlink(missing_ok=True)
            raise

    def has(self, name: Name) -> bool:
        return self.path(name).is_file()

    def stamp(self, name: Name) -> str | None:
        """What tells the session's file from every other: None where there is none, or none that can be read."""
        return stamp(self.path(name))

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
        for suffix in (".lm2s", ".json", NEXT, ".lm2s.lock"):
            with suppress(OSError):
                self.path(name, suffix).unlink()

    def names(self, kind: str, owner: str) -> list[Name]:
        """Sessions of an owner that have a file, the longest unused first."""
        return [Name(kind, owner, path.stem) for _, _, path in sorted(_files(self.folder / kind / owner))]

    def count(self) -> int:
        """How many named sessions there are, of all owners."""
        return sum(1 for kind in NAMED for _ in _files(self.folder / kind))

    def grown(self, size: int) -> None:
        """A chain or a response of so many bytes was written. Over the limit, the longest unused are removed until a tenth of it is free.

        What other servers wrote is counted after every hundredth of the limit that this one wrote.
        """
        self._size += size
        self._grown += size
        if self.shared and self._grown > self.most // 100:
            self._grown, self._size = 0, self._measured()
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


    def _measured(self) -> int:
        return sum(size for kind in PASSING for _, size, _ in _files(self.folder / kind))


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
