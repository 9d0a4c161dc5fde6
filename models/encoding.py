"""Text from outside: UTF-8, with or without a byte-order mark at its start. Reads short files whole (long ones are textfile.py's); knows no content."""

import codecs
from pathlib import Path

from .errors import LM2Error

MARK = codecs.BOM_UTF8
OTHER_MARKS = (  # the longer ones first: UTF-32's begins as UTF-16's does
    (codecs.BOM_UTF32_LE, "UTF-32 (little-endian)"),
    (codecs.BOM_UTF32_BE, "UTF-32 (big-endian)"),
    (codecs.BOM_UTF16_LE, "UTF-16 (little-endian)"),
    (codecs.BOM_UTF16_BE, "UTF-16 (big-endian)"),
)


class EncodingError(LM2Error, ValueError):
    """Bytes are not UTF-8. The message goes on from the file's name: `is UTF-16 (little-endian), not UTF-8`."""


def without_mark(data: bytes) -> bytes:
    """`data` without UTF-8's byte-order mark at its start. Raises EncodingError naming another encoding by its mark."""
    for mark, name in OTHER_MARKS:
        if data.startswith(mark):
            raise EncodingError(f"is {name}, not UTF-8")
    return data.removeprefix(MARK)


def decode(data: bytes) -> str:
    """The text of a whole file's bytes. Raises EncodingError."""
    try:
        return without_mark(data).decode("utf-8")
    except UnicodeDecodeError as error:
        raise EncodingError(f"is not UTF-8 (byte {error.start + (len(MARK) if data.startswith(MARK) else 0)})") from None


def read_text(path: Path) -> str:
    """The text of a file, line ends as `\\n`. Raises EncodingError and OSError."""
    return decode(path.read_bytes()).replace("\r\n", "\n").replace("\r", "\n")
