"""Text that comes from outside: lines, files and pipes, checked before a tokenizer sees them. Knows bytes and UTF-8, no model."""

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ...models.encoding import EncodingError, without_mark
from ...models.errors import PromptError

MESSAGE_BYTES_MAX = 1 << 20
BLOCK_BYTES = 1 << 16


def check_message(text: str, where: str) -> str:
    """A message or prompt, ready to be answered. Raises PromptError naming `where` for an empty one, a NUL byte, or more than 1 MiB."""
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MESSAGE_BYTES_MAX:
        raise PromptError(
            f"{where} has {size} bytes, more than the {MESSAGE_BYTES_MAX} of one message: read long texts with /read FILE or --context FILE"
        )
    if "\0" in text:
        raise PromptError(f"{where} has a NUL byte at character {text.index(chr(0)) + 1}: it is not text; remove it")
    for i, c in enumerate(text):
        if 0xD800 <= ord(c) <= 0xDFFF:
            raise PromptError(f"{where} is not valid UTF-8 at character {i + 1}: save it as UTF-8")
    if not text.strip():
        raise PromptError(f"{where} is empty: write something")
    return text


def read_message(f: BinaryIO, where: str) -> str:
    """A whole prompt of at most 1 MiB from an open file. Raises PromptError naming `where`."""
    raw = f.read(MESSAGE_BYTES_MAX + 1)
    if len(raw) > MESSAGE_BYTES_MAX:
        raise PromptError(f"{where} has more than the {MESSAGE_BYTES_MAX} bytes of one message: read long texts with --context FILE")
    return check_message(unmarked(raw, where).decode("utf-8", "surrogateescape"), where)


def unmarked(raw: bytes, where: str) -> bytes:
    """The beginning of a text without its byte-order mark. Raises PromptError naming `where` and an encoding that is not UTF-8."""
    try:
        return without_mark(raw)
    except EncodingError as error:
        raise PromptError(f"{where} {error}: save it as UTF-8") from None


def read_message_file(path: Path) -> str:
    """A whole prompt file of at most 1 MiB. Raises PromptError naming the file."""
    with _opened(path) as f:
        return read_message(f, str(path))


def read_blocks(path: Path) -> Iterator[tuple[str, int]]:
    """A text file of any length in blocks cut at line ends where there are any, each with the bytes read so far; constant memory.

    Raises PromptError naming the file: missing, a folder, no permission, not UTF-8, a NUL byte, or empty.
    """
    with _opened(path) as f:
        yield from _blocks(f, str(path))


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with open(path, "rb") as f:
            yield f
    except FileNotFoundError:
        raise PromptError(f"{path} does not exist: check the name") from None
    except IsADirectoryError:
        raise PromptError(f"{path} is a folder: give a text file") from None
    except OSError as error:
        raise PromptError(f"cannot read {path}: {error.strerror or error}") from None


def _blocks(f: BinaryIO, where: str) -> Iterator[tuple[str, int]]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    held, done, found = "", 0, False
    while True:
        raw = f.read(BLOCK_BYTES)
        size = len(raw)
        if done == 0:
            raw = unmarked(raw, where)
        begin = done + size - len(raw)
        if b"\0" in raw:
            raise PromptError(f"{where} has a NUL byte at byte {begin + raw.index(0) + 1}: it is not a text file")
        try:
            held += decoder.decode(raw, final=not size)
        except UnicodeDecodeError as error:
            raise PromptError(f"{where} is not valid UTF-8 near byte {begin + error.start + 1}: save it as UTF-8") from None
        done, found = done + size, found or bool(raw)
        if not size:
            break
        cut = held.rfind("\n") + 1
        if cut == 0 and len(held) > BLOCK_BYTES:
            cut = held.rfind(" ") if held.rfind(" ") > 0 else len(held)
        if cut:
            yield held[:cut], done
            held = held[cut:]
    if not found:
        raise PromptError(f"{where} is empty: there is nothing to read")
    if held:
        yield held, done
