"""The `onnx` block of an exported folder's config.json: which model it was made from, how, and the digests of its files.

Knows names and bytes; builds no graph and imports no ML library. Sessions are bound to the model a folder was exported from, so that one
conversation moves between the model folder and its exports: the source's fingerprint is kept in the block.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .atomic import write_file
from .errors import ConfigError, ModelFileError, WriteError

KEY = "onnx"
MODEL = "model.onnx"
DATA = "model.onnx.data"
CHECKED = "checked.json"
FORMAT = 5  # raised when the state that goes in and out changes, or an operator's version
READABLE = (3, 4, 5)  # before 4 all sequences of a batch shared past_length; the shape of that input says which it is
UNPACKED = 4  # its int8 and int4 have QLinear in version 1, which no library has any more: the bodies in the files run
PRECISIONS = ("fp32", "fp16", "int8", "int4")
OPSETS = (23, 24)
BLOCK_BYTES = 8 << 20


@dataclass(frozen=True)
class Export:
    """How a folder was exported. source: fingerprint of the model. files: name -> (bytes, sha256 in hex) of model.onnx and its data.

    plain: no custom operator; portable: ONNX's own operators only. attention: the operator that attends inside a window.
    tokenizer: sha256 of tokenizer.json, empty if there was none.
    """

    source: str
    precision: str
    opset: int
    plain: bool = False
    portable: bool = False
    attention: str = ""
    tokenizer: str = ""
    files: Mapping[str, tuple[int, str]] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Bytes of the graph and its data."""
        return sum(size for size, _ in self.files.values())

    def to_dict(self) -> dict[str, Any]:
        """The block of config.json."""
        d = asdict(self)
        d["source_fingerprint"] = d.pop("source")
        d["tokenizer_sha256"] = d.pop("tokenizer")
        d["files"] = {name: {"bytes": size, "sha256": digest} for name, (size, digest) in self.files.items()}
        return {"format": FORMAT} | d

    @classmethod
    def from_dict(cls, d: Any) -> "Export":
        """Read the block. Raises ConfigError naming the field, the value and what was expected."""
        if not isinstance(d, Mapping):
            raise ConfigError(f"{KEY} {d!r} must be an object")
        if type(d.get("format")) is not int or d["format"] not in READABLE:
            raise ConfigError(f"{KEY}.format {d.get('format')!r} {other_format(d.get('format'))}")
        if d.get("precision") not in PRECISIONS:
            raise ConfigError(f"{KEY}.precision {d.get('precision')!r} must be one of {', '.join(PRECISIONS)}")
        if d.get("opset") not in OPSETS:
            raise ConfigError(f"{KEY}.opset {d.get('opset')!r} must be one of {', '.join(map(str, OPSETS))}")
        source, files = d.get("source_fingerprint"), d.get("files")
        if not _is_digest(source):
            raise ConfigError(f"{KEY}.source_fingerprint {source!r} must be 64 hexadecimal digits: export the model again")
        if not isinstance(files, Mapping) or MODEL not in files or not set(files) <= {MODEL, DATA}:
            raise ConfigError(f"{KEY}.files must name {MODEL}, {DATA} beside it if there is one, and nothing else")
        for name, entry in files.items():
            if not isinstance(entry, Mapping) or type(entry.get("bytes")) is not int or not _is_digest(entry.get("sha256")):
                raise ConfigError(f"{KEY}.files.{name} {entry!r} must hold bytes and sha256")
        kept = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
        flags = {name: d.get(name) is True for name in ("plain", "portable")}
        return cls(
            str(source), d["precision"], d["opset"], attention=str(d.get("attention", "")), tokenizer=str(d.get("tokenizer_sha256", "")),
            files=kept, **flags,
        )  # fmt: skip


def other_format(found: Any) -> str:
    """What to say of an export whose format is not this version's."""
    later = type(found) is int and found > FORMAT
    return f"must be {' or '.join(map(str, READABLE))}: exported by {'a later' if later else 'an earlier'} lm2: export it again with `lm2 export MODEL DST`"


def check_files(path: Path, export: Export, progress: Callable[[int], None] | None = None) -> None:
    """Compare the folder's files with the block's sizes and digests; the result is kept while size and time of the files stay the same.

    Raises ModelFileError naming the file and both values.
    """
    stamp: dict[str, list[Any]] = {}
    for name, (size, digest) in export.files.items():
        try:
            stat = (path / name).stat()
        except OSError:
            raise ModelFileError(
                f"{path / name} is missing: copy it from where the model was exported, or export the model again"
            ) from None
        if stat.st_size != size:
            raise ModelFileError(f"{path / name} has {stat.st_size} bytes, it was exported with {size} (cut off?): copy or export it again")
        stamp[name] = [size, stat.st_mtime_ns, digest]
    with suppress(OSError, ValueError):
        if json.loads((path / CHECKED).read_text(encoding="utf-8")) == stamp:
            return
    for name, (_, digest) in export.files.items():
        found = file_digest(path / name, progress)
        if found != digest:
            raise ModelFileError(
                f"{path / name} has sha256 {found[:12]}..., it was exported with {digest[:12]}...: copy or export it again"
            )
    write_checked(path, stamp)


def write_checked(path: Path, stamp: Mapping[str, list[Any]]) -> None:
    """Keep that the files were found whole; a folder that cannot be written is checked again next time."""
    body = json.dumps(stamp).encode()
    with suppress(WriteError):
        write_file(path / CHECKED, lambda f: f.write(body), follow=False)  # a link's file may be another folder's


def file_digest(file: Path, progress: Callable[[int], None] | None = None) -> str:
    """sha256 of a file in hex, read in blocks. `progress` is told the bytes of each."""
    digest = hashlib.sha256()
    with open(file, "rb") as f:
        while block := f.read(BLOCK_BYTES):
            digest.update(block)
            if progress:
                progress(len(block))
    return digest.hexdigest()


def _is_digest(x: Any) -> bool:
    return isinstance(x, str) and len(x) == 64 and not set(x) - set("0123456789abcdef")
