"""Training texts from a folder: bAbI's stories, books, plain text. Knows files and formats; draws nothing.

The folder may hold `babi/qaN_*_train.txt`, books (`background/` or `books/`, else *.txt and *.md of the folder itself: .txt and .md, found and
divided as evaluation finds and divides them), `chat/` (dialogues.py) and `tinystories/`. Plain text in the folders of books and stories may also
be records with a "text" (.jsonl, .json). What is not used is counted by reason.
"""

import hashlib
import re
from pathlib import Path

from .. import textfile
from ..tasks import babi, babilong
from ..textfile import paragraphs as paragraphs_of
from ..textfile import words
from .dialogues import dialogues as dialogues
from .leftout import LeftOut
from .plan import TrainError
from .records import FILE_BYTES_MAX, texts

TEXT_BYTES_MAX = 8 << 30
WORDS_MIN = 8
RECORDS = (".jsonl", ".json")
Told = tuple[str, list[str], list[tuple[str, str]]]


def stories(folder: Path, tasks: tuple[str, ...]) -> list[Told]:
    """(task, facts, questions with answers) of bAbI's training part. Empty without files."""
    where = folder / "babi"
    if not where.is_dir():
        return []
    out = []
    for task, file in babi.find(where).items():
        if task not in tasks:
            continue
        for story in babi.split(babi.read(file), "train"):
            facts = [line.text for line in story.lines if isinstance(line, babi.Fact)]
            out.append((task, facts, [(q.text, q.answer) for q in story.questions]))
    return out


def books(folder: Path, part: str = "train", left: LeftOut | None = None) -> list[Path]:
    """Book files of a part in name order, divided as evaluation divides them; without those whose bytes another one has, held out ones included.

    Raises BabilongError for two books of one name, TrainError for files that cannot be read.
    """
    left = LeftOut() if left is None else left
    try:
        found = babilong.named_books(*babilong.book_home(folder))
    except babilong.NoBook:
        return []
    kept = babilong.book_part(found, part)
    out: list[Path] = []
    seen = {_digest(found[name]) for name in found if name not in kept}
    for name in found:
        if name not in kept:
            left.add("book{s} held out for evaluation" if part == "train" else "book{s} for training", name)
            continue
        mark = _digest(found[name])
        if mark in seen:
            left.add("book{s} with the bytes of another", name)
        else:
            seen.add(mark)
            out.append(found[name])
    return out


def lines(file: Path) -> list[str]:
    """The lines of a text file. Raises TrainError naming it."""
    return list(textfile.lines(file, FILE_BYTES_MAX, TrainError))


def sentences(files: list[Path], left: LeftOut | None = None) -> list[str]:
    """Sentences of at least eight words, in order."""
    left = LeftOut() if left is None else left
    split = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])(?![”’」』）])")
    out = []
    for file in files:
        for paragraph in _paragraphs(file, left):
            for sentence in split.split(paragraph):
                if words(sentence) >= WORDS_MIN:
                    out.append(sentence.strip().replace("\n", " "))
                elif sentence.strip():
                    left.add(f"sentence{{s}} of fewer than {WORDS_MIN} words")
    return out


def paragraphs(
    folder: Path, a_book: int | None = None, stories_most: int | None = None, words_least: int = 1, left: LeftOut | None = None
) -> list[str]:
    """Paragraphs of the training books and of the records beside them, then short stories; all of them, unless told otherwise.

    a_book, stories_most: of each file of books and of stories, the first so many. words_least: of a book's paragraph. `left` hears of all that is
    not used. Raises TrainError naming a file that cannot be read.
    """
    left = LeftOut() if left is None else left
    home, nested = babilong.book_home(folder)
    chosen = [*books(folder, "train", left), *_files(home, nested, RECORDS)]
    plain = _files(folder / "tinystories", True, (*RECORDS, *babilong.BOOK_ENDINGS))
    size = sum(f.stat().st_size for f in (*chosen, *plain))
    if size > TEXT_BYTES_MAX:
        raise TrainError(f"{folder} has {size} bytes of text, more than the {TEXT_BYTES_MAX} that are held at once: leave files out")
    out: list[str] = []
    for files, most, least in ((chosen, a_book, words_least), (plain, stories_most, 1)):
        for file in files:
            found = _paragraphs(file, left)
            long = [text for text in found if words(text) >= least]
            left.add(f"paragraph{{s}} of fewer than {least} words", file, len(found) - len(long))
            out += long[:most]
            left.add(f"paragraph{{s}} after the first {most:,} of a file" if most else "", file, len(long) - len(long[:most]))
    _unread(folder, home, nested, left)
    return out


def _paragraphs(file: Path, left: LeftOut) -> list[str]:
    """A file's paragraphs, or the texts of its records."""
    kind, before = file.suffix.lower(), left.total
    if kind in RECORDS:
        out = list(texts(file, left))
    else:
        text = textfile.read_text(file, FILE_BYTES_MAX, TrainError)
        out = [b.strip("\n") for b in re.split(r"\n\s*\n", text) if b.strip()] if kind == ".md" else paragraphs_of(text)
    if not out and left.total == before:
        left.add("file{s} without text", file)
    return out


def _files(where: Path, nested: bool, endings: tuple[str, ...]) -> list[Path]:
    """Files with these endings, README and the like left out, in name order."""
    found = sorted(where.rglob("*") if nested else where.glob("*"))
    return [f for f in found if f.suffix.lower() in endings and f.is_file() and not babilong.no_book(f)]


def _unread(folder: Path, home: Path, nested: bool, left: LeftOut) -> None:
    """Tell `left` of files and folders that are not looked into."""
    read = (*RECORDS, *babilong.BOOK_ENDINGS)
    known = {folder / name for name in ("babi", "chat", "tinystories")} | {home}
    for where, deep in ((home, nested), (folder / "tinystories", True)):
        for file in sorted(where.rglob("*") if deep else where.glob("*")) if where.is_dir() else ():
            if file.is_file() and (file.suffix.lower() not in read or babilong.no_book(file)) and not file.name.startswith("."):
                left.add("file{s} of another kind", file)
    for entry in sorted(folder.iterdir()):
        if entry not in known and not entry.name.startswith("."):
            if entry.is_dir():
                left.add("folder{s} other than babi, background or books, chat and tinystories", entry)
            elif home != folder:
                left.add("file{s} in none of the folders", entry)


def _digest(file: Path) -> bytes:
    try:
        with open(file, "rb") as f:
            return hashlib.file_digest(f, "sha256").digest()
    except OSError as error:
        raise TrainError(f"cannot read {file}: {error.strerror or error}") from None
