"""bAbI's files (v1.2): stories, sentences, questions with their answers and supporting sentences. Reads text; knows no model and no scoring.

A line is `ID text`, or `ID question<tab>answer<tab>support ids`; an ID of 1 begins a new story. Source: Weston et al., arXiv 1502.05698.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from .. import textfile
from ..errors import LM2Error

TASKS = tuple(f"qa{i}" for i in range(1, 11))
PARTS = ("train", "validation")
SPLIT_SEED = 0
HELD_OUT_PERCENT = 10
FILE_BYTES_MAX = 256 << 20

_ROOMS = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
_THINGS = ("apple", "football", "milk")
_LABELS = {
    **dict.fromkeys(("qa1", "qa2", "qa3", "qa4"), _ROOMS),
    "qa5": ("Bill", "Fred", "Jeff", "Mary", *_THINGS),
    "qa6": ("yes", "no"),
    "qa7": ("none", "one", "two", "three"),
    "qa8": (*_THINGS, "nothing"),
    "qa9": ("yes", "no"),
    "qa10": ("yes", "no", "maybe"),
}


class BabiError(LM2Error):
    """A file is not in bAbI's form, or is not there. The message names the file, and the line where there is one."""


class Fact(NamedTuple):
    """A sentence that is not a question. id: its number in the story."""

    id: int
    text: str


class Question(NamedTuple):
    """A question. support: ids of the facts it is answered from, in the file's order."""

    id: int
    text: str
    answer: str
    support: tuple[int, ...]


class Story(NamedTuple):
    """One story: facts and questions in their order. task: `qa1`, ..."""

    task: str
    lines: tuple[Fact | Question, ...]

    @property
    def questions(self) -> tuple[Question, ...]:
        return tuple(line for line in self.lines if isinstance(line, Question))

    def facts_before(self, question: Question) -> tuple[Fact, ...]:
        """Every fact told before the question; earlier questions are left out."""
        return tuple(line for line in self.lines if isinstance(line, Fact) and line.id < question.id)


def labels(task: str) -> tuple[str, ...]:
    """Every one-word answer of a task. Raises BabiError for a task there are none for."""
    if task not in _LABELS:
        raise BabiError(f"bAbI task {task!r} must be one of {', '.join(_LABELS)}")
    return _LABELS[task]


def task_of(path: Path) -> str:
    """`qa1` of `qa1_single-supporting-fact_train.txt`. Raises BabiError for a name that does not begin so."""
    found = re.match(r"qa\d+(?=[_.-])", path.name)
    if not found:
        raise BabiError(f"{path} must be called qaN_NAME_train.txt, as in the bAbI archive: rename it")
    return found.group()


def find(folder: Path, ending: str = "train") -> dict[str, Path]:
    """Files `qaN_*_ENDING.txt` of a folder by task, in the tasks' order. Raises BabiError when there is none, or two of a task."""
    files: dict[str, Path] = {}
    for path in sorted(folder.glob(f"qa*_{ending}.txt")):
        task = task_of(path)
        if task in files:
            raise BabiError(f"{path} and {files[task].name} are both {task}: leave one of them")
        files[task] = path
    if not files:
        raise BabiError(f"{folder} has no file qaN_*_{ending}.txt: give the folder with bAbI's files (tasks v1.2, folder en or en-10k)")
    return dict(sorted(files.items(), key=lambda item: int(item[0][2:])))


def read(path: Path, task: str = "") -> tuple[Story, ...]:
    """Every story of a file. task: by the file's name unless given. Raises BabiError naming the file and the line."""
    task = task or task_of(path)
    if not path.exists():
        raise BabiError(f"{path} does not exist: give the path of a bAbI file")
    stories = tuple(parse(textfile.lines(path, FILE_BYTES_MAX, BabiError), task, str(path)))
    if not stories:
        raise BabiError(f"{path} has no story: it is empty")
    return stories


def parse(lines: Iterable[str], task: str, name: str = "bAbI text") -> Iterator[Story]:
    """Stories of a file's lines; blank lines are skipped. `name` is what errors call it. Raises BabiError."""
    story: list[Fact | Question] = []
    for number, raw in enumerate(lines, 1):
        line = raw.strip()
        if not line:
            continue
        where = f"{name} line {number}"
        head, _, rest = line.partition(" ")
        if not (head.isascii() and head.isdigit() and rest.strip()):
            raise BabiError(f"{where}: {_short(line)} must be a number, a blank and a sentence")
        count = int(head)
        if count == 1 and story:
            yield Story(task, tuple(story))
            story = []
        expected = story[-1].id + 1 if story else 1
        if count != expected:
            raise BabiError(f"{where}: number {count} must be {expected}" + (" or 1" if story else "") + ": lines are missing")
        story.append(_line(count, rest, story, where))
    if story:
        yield Story(task, tuple(story))


def split(stories: Iterable[Story], part: str, seed: int = SPLIT_SEED, held_out: int = HELD_OUT_PERCENT) -> tuple[Story, ...]:
    """The stories of one part, `train` or `validation`, in their order: by story, never by question.

    Where a story goes depends on its words and `seed` alone, not on its place in the file: about `held_out` percent are for validation,
    and two equal stories are always in the same part. Raises ValueError for another part.
    """
    if part not in PARTS:
        raise ValueError(f"part {part!r} must be one of {', '.join(PARTS)}")
    return tuple(story for story in stories if (_drawn(story, seed) < held_out) == (part == "validation"))


def _drawn(story: Story, seed: int) -> int:
    """0 to 99, from a digest of the seed and the story's words."""
    text = "\n".join((str(seed), story.task, *(line.text for line in story.lines)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 100


def _line(count: int, rest: str, story: list[Fact | Question], where: str) -> Fact | Question:
    if "\t" not in rest:
        return Fact(count, rest.strip())
    parts = [part.strip() for part in rest.split("\t")]
    if len(parts) != 3 or not all(parts):
        raise BabiError(f"{where}: {_short(rest)} must be a question, an answer and supporting numbers, with a tab between them")
    told = {line.id for line in story if isinstance(line, Fact)}
    support = []
    for word in parts[2].split():
        if not (word.isascii() and word.isdigit() and int(word) in told):
            raise BabiError(f"{where}: support {_short(word)} must be the number of a sentence told before in this story")
        support.append(int(word))
    return Question(count, parts[0], parts[1], tuple(support))


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "...")
