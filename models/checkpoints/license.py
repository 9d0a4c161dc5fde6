"""The licence of a source: what a folder or a GGUF says of it, and the files of its text, which go where the model goes.

Knows names and text, no licence in particular: nothing is judged and nothing is refused. What cannot be read is left out with a note.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..atomic import write_file
from ..oserrors import remedy, shown

NAME, URL, FILES = "license", "license_url", "license_files"  # fields of source.json
CARD = "README.md"
CARD_BYTES_MAX, FILE_BYTES_MAX, FILES_MAX, VALUE_MAX = 64 << 10, 1 << 20, 16, 200
_FILE = re.compile(r"(.*[._ -])?(licen[cs]es?|copying|notice|use[_-]policy|terms[_-]of[_-]use)([._ -].*)?", re.IGNORECASE)
_OTHER = (".py", ".json", ".jinja", ".safetensors", ".bin", ".gguf")
_FIELDS = ("license", "license_name", "license_link")


def license_files(folder: Path) -> list[Path]:
    """The files of a folder that are named as licences are (LICENSE.txt, NOTICE, USE_POLICY.md), links followed; by name, FILES_MAX at most."""
    try:
        found = sorted(p for p in folder.iterdir() if _FILE.fullmatch(p.name) and not p.name.startswith(".") and not p.name.endswith(_OTHER))
    except OSError:
        return []
    return [p for p in found if p.is_file()][:FILES_MAX]


def carry(files: Iterable[Path], out: Path) -> tuple[list[str], list[str]]:
    """Copy licence files into the folder `out` that is being made. Returns their names, and a sentence for each that was left out. Raises WriteError
    where `out` cannot be written."""
    names, notes = [], []
    for file in files:
        try:
            size = file.stat().st_size
            data = file.read_bytes() if size <= FILE_BYTES_MAX else None
        except OSError as error:
            notes.append(f"{shown(file)} was not carried over ({error.strerror or error}): {remedy(error)}")
            continue
        if data is None:
            notes.append(f"{shown(file)} was not carried over: it has {size} bytes, more than the {FILE_BYTES_MAX} of a licence; copy it by hand")
            continue
        _put(out / file.name, data)
        names.append(shown(file.name))
    return names, notes


def _put(path: Path, data: bytes) -> None:
    write_file(path, lambda f: f.write(data))


def carry_on(folder: Path, out: Path) -> None:
    """Put the licence files of model folder `folder` into the folder `out` that is being made of it. Raises WriteError."""
    carry(license_files(folder), out)


def said_in_folder(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Licence and address of a Hugging Face folder, as far as it says them: the header of its model card, else config.json's `license`."""
    card: dict[str, str] = {}
    try:
        with open(folder / CARD, "rb") as f:
            card = header_fields(f.read(CARD_BYTES_MAX).decode("utf-8", "replace"))
    except OSError:
        pass
    name = card.get("license")
    if name in (None, "other"):
        name = card.get("license_name", name)
    return named(name or config.get("license"), card.get("license_link"))


def said_in_gguf(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The same of a GGUF file's general.license, its name and link."""
    name = metadata.get("general.license")
    if name in (None, "other"):
        name = metadata.get("general.license.name", name)
    return named(name, metadata.get("general.license.link"))


def named(name: Any, url: Any) -> dict[str, str]:
    """The fields of source.json for what is text."""
    given = {NAME: ", ".join(map(str, name)) if isinstance(name, list) else name, URL: url}
    texts = {key: " ".join(value.split()) for key, value in given.items() if isinstance(value, str)}
    return {key: "".join(c for c in value if c.isprintable())[:VALUE_MAX] for key, value in texts.items() if value}


def header_fields(text: str) -> dict[str, str]:
    """`license`, `license_name` and `license_link` of a model card's header: the lines between two of ---, one value or a list of them each."""
    lines = text.removeprefix("\ufeff").splitlines()
    if not lines or lines[0].strip() != "---":
        return {}
    found: dict[str, list[str]] = {}
    key = ""
    for line in lines[1:]:
        if line.strip() in ("---", "..."):
            return {name: ", ".join(values) for name, values in found.items() if values}
        field = re.fullmatch(r"([\w-]+)\s*:(?:\s+(.*))?", line)
        if field:
            key, value = field[1], (field[2] or "").strip()
            values = value[1:-1].split(",") if value.startswith("[") and value.endswith("]") else [value]
        else:
            entry = re.fullmatch(r"\s*-\s+(.*)", line)
            values = [entry[1]] if entry else []
        if key in _FIELDS:
            found.setdefault(key, []).extend(v for v in map(_plain, values) if v)
    return {}  # the header does not end: it is none


def _plain(value: str) -> str:
    """A scalar without quotes and comment."""
    value = value.strip()
    quoted = re.match(r"\"([^\"]*)\"|'([^']*)'", value)
    if quoted:
        return quoted[1] if quoted[1] is not None else quoted[2]
    return "" if value in ("|", ">", "~", "null") else re.sub(r"\s+#.*", "", value)

