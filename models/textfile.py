"""Long text files from outside, line by line: UTF-8, its mark taken off, one kind of line end. Knows characters; no tokens and no task.

A line ends at \\n, \\r\\n or \\r and nowhere else: U+2028, U+0085 and form feeds are characters of a line (str.splitlines cuts there).
"""

import codecs
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

from .encoding import EncodingError, without_mark
from .errors import LM2Error

FILLED_MIN, WRAPPED_LINES_MIN = 0.7, 8
WIDTHS = range(30, 121)  # columns a text may be wrapped at
# Chinese, Japanese, Thai, Lao, Tibetan, Burmese, Khmer: written without blanks between words.
_UNSPACED = re.compile(r"[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\uf900-\ufaff\uff01-\uff60\U00020000-\U0003ffff]")
_STOP = re.compile(r"[.!?:;。！？：；][\"'”’)\]」』）]*$")


def lines(path: Path, most: int, error: type[LM2Error]) -> Iterator[str]:
    """The lines of a file, one after the other, without their ends; an empty file has none.

    Raises `error` naming the file: more than `most` bytes, not UTF-8 (and where), a NUL byte, unreadable.
    """
    try:
        size = path.stat().st_size
        if size > most:
            raise error(f"{path} has {size} bytes, more than the {most} allowed: split it")
        with open(path, "rb") as f:
            begin = f.read(4)
        without_mark(begin)
        with open(path, encoding="utf-8-sig", newline=None) as text:
            for number, line in enumerate(text, 1):
                if "\0" in line:
                    raise error(f"{path} line {number} has a NUL byte: it is no text; remove it")
                yield line.removesuffix("\n")
    except EncodingError as wrong:
        raise error(f"{path} {wrong}: save it as UTF-8") from None
    except UnicodeDecodeError:
        raise error(f"{path} is not UTF-8 (byte {_wrong_byte(path)}): save it as UTF-8") from None
    except OSError as problem:
        raise error(f"cannot read {path}: {problem.strerror or problem}") from None


def read_text(path: Path, most: int, error: type[LM2Error]) -> str:
    """A whole file, its lines ended by \\n. Raises as `lines` does."""
    return "\n".join(lines(path, most, error))


def _wrong_byte(path: Path) -> int:
    """Offset of the first byte that is not UTF-8."""
    decoder, done = codecs.getincrementaldecoder("utf-8")(), 0
    with open(path, "rb") as f:
        while True:
            raw = f.read(1 << 16)
            held = len(decoder.getstate()[0])
            try:
                decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as error:
                return done - held + error.start
            done += len(raw)
            if not raw:
                return done


def words(text: str) -> int:
    """About how many words: what stands between blanks, and one for two characters of a script that has none."""
    return len(text.split()) + len(_UNSPACED.findall(text)) // 2


def paragraphs(text: str) -> list[str]:
    """The paragraphs of a text, without blanks around them: its lines; or where it is wrapped, what stands between blank or indented lines.

    A text is wrapped when it has blank lines or, fewer than the others, indented ones, and those that follow one another are as full as 30 to 120 columns allow, most
    of them not ending in a stop.
    """
    rows = text.split("\n")
    if not _wrapped(rows):
        return [row.strip() for row in rows if row.strip()]
    out: list[str] = []
    indent: int | None = None
    for row in rows:
        line = row.strip()
        if not line:
            indent = None
            continue
        now = len(row) - len(row.lstrip())
        if indent is None or now > indent:
            out.append(line)
        else:
            out[-1] = f"{out[-1]}{_between(out[-1], line)}{line}"
        indent = now
    return out


def _wrapped(rows: list[str]) -> bool:
    shown = [row.strip() for row in rows]
    pairs = [(a, b) for a, b in pairwise(shown) if a and b]  # lines that another follows
    indented = sum(bool(line) and row[0].isspace() for row, line in zip(rows, shown, strict=True))
    if ("" not in shown[:-1] and not 0 < indented < len(rows) / 2) or len(pairs) < WRAPPED_LINES_MIN:
        return False
    sizes = sorted(len(a) for a, _ in pairs)
    width = sizes[int(0.95 * (len(sizes) - 1))]
    if width not in WIDTHS or sum(bool(_STOP.search(a)) for a, _ in pairs) > len(pairs) / 2:
        return False
    full = sum(len(a) + len(_between(a, b)) + len(_first(b)) > 0.95 * width for a, b in pairs)
    return full >= FILLED_MIN * len(pairs)


def _first(line: str) -> str:
    """What a wrapper could have put on the line before: a word, or a character of a script without blanks."""
    return line[0] if _UNSPACED.match(line) else line.split(None, 1)[0]


def _between(a: str, b: str) -> str:
    """What stood where a line was wrapped: nothing after a hyphen or within a script without blanks, else a blank."""
    return "" if a.endswith("-") or (_UNSPACED.match(a[-1]) and _UNSPACED.match(b)) else " "


def cut(text: str, most: int) -> list[str]:
    """A text in pieces of at most `most` characters, which joined are the text: cut before a blank where there is one in the second half."""
    out, at = [], 0
    while len(text) - at > most:
        blank = max(text.rfind(" ", at + most // 2, at + most), text.rfind("\n", at + most // 2, at + most))
        end = blank if blank > at else at + most
        out.append(text[at:end])
        at = end
    return [*out, text[at:]]


def longest(limit: int, count: Callable[[int], int], room: int) -> int:
    """The largest n from 0 to `limit` with count(n) at most `room`, for a count that grows with n. Asks for few n, and none much larger."""
    high = 1
    while high < limit and count(high) <= room:
        high *= 2
    low, high = high // 2, min(high, limit)
    while low < high:
        middle = (low + high + 1) // 2
        if count(middle) <= room:
            low = middle
        else:
            high = middle - 1
    return low
