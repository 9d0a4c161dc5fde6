"""Where the samples of a task come from: the project's own generator, or bAbI's files and books in a folder. Knows files and tasks, no backend."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

from ...models.tasks import babi, babilong
from ...models.tasks.recall import KINDS, ROOM_FOR_TEMPLATE, conversations
from ...models.tasks.scoring import Floor, majority
from ...models.text.library import ids_of, open_library
from ...models.text.tokenizer import read_tokenizer
from .cells import Cell
from .render import Renderer
from .store import EvaluationError

FLOOR_DRAWS, FLOOR_CHUNK = 5000, 400


def recall_cells(kinds: Sequence[str], distances: Sequence[int], part: str, seed: int, renderer: Renderer) -> list[Cell]:
    """A cell for each kind and distance in chunks. Raises EvaluationError for a kind or part the generator does not have."""
    part = "validation" if part == "auto" else part
    if part == "test":
        raise EvaluationError("--part test: story and chat have no test files, their samples are drawn: use --part validation")
    for kind in kinds:
        if kind not in KINDS:
            raise EvaluationError(f"--only {kind}: recall has {', '.join(KINDS)}")
    room = renderer.room - max(0, renderer.around() - renderer.head - ROOM_FOR_TEMPLATE)
    floors = {kind: recall_floor(kind, part, seed) for kind in kinds}
    return [
        Cell(
            kind, distance, "1 chunk ago" if distance == 1 else f"{distance} chunks ago", floors[kind],
            partial(conversations, kind, seed, part, distance, renderer.count, room),
        )
        for kind in kinds
        for distance in distances
    ]  # fmt: skip


def recall_floor(kind: str, part: str, seed: int, draws: int = FLOOR_DRAWS) -> Floor:
    """What giving the commonest answer to each kind of question would score, over `draws` samples of a part. Named when there is one kind only."""
    drawn = islice(conversations(kind, seed, part, 1, len, FLOOR_CHUNK, 0), draws)
    answers: dict[str, list[str]] = {}
    for conversation in drawn:
        answers.setdefault(conversation.kind, []).append(conversation.answer)
    floors = [(majority(found), len(found)) for found in answers.values()]
    name = floors[0][0].answer if len(floors) == 1 else "of its kind"
    return Floor(name, sum(floor.share * count for floor, count in floors) / draws)


class Facts:
    """bAbI's stories of a folder (its own, or its subfolder `babi`), by task, of one part.

    part: `test` takes the files qaN_*_test.txt whole; `train` and `validation` a part of qaN_*_train.txt, split by story; `auto` is test
    where there are such files, else validation. `part` then says which. Raises BabiError or EvaluationError.
    """

    def __init__(self, folder: Path, part: str, only: Sequence[str]):
        home = folder / "babi" if (folder / "babi").is_dir() else folder
        if part == "auto":
            part = "test" if any(home.glob("qa*_test.txt")) else "validation"
        self.part = part
        files = babi.find(home, "test" if part == "test" else "train")
        for task in only:
            if task not in files:
                raise EvaluationError(f"--only {task}: {home} has {', '.join(files)}")
        self.files = {task: path for task, path in files.items() if not only or task in only}
        self.stories = {task: self._stories(path) for task, path in self.files.items()}

    def floor(self, task: str) -> Floor:
        """The commonest answer of all the part's questions of a task."""
        return majority(q.answer for story in self.stories[task] for q in story.questions)

    def _stories(self, path: Path) -> tuple[babi.Story, ...]:
        stories = babi.read(path)
        kept = stories if self.part == "test" else babi.split(stories, self.part)
        if not any(story.questions for story in kept):
            raise EvaluationError(f"{path} has no question in its {self.part} part ({len(stories)} stories): give a larger file")
        return kept


class Library:
    """The books of a folder (its subfolder `background`, `books`, or its own), of one part: `test` and `validation` are the held-out names."""

    def __init__(self, folder: Path, part: str):
        found = babilong.named_books(*babilong.book_home(folder))
        held = babilong.book_part(found, "train" if part == "train" else "validation")
        self.names = {found[name]: name for name in held}
        self.files = list(self.names)

    def books(self, count_tokens: Callable[[str], int]) -> tuple[babilong.Book, ...]:
        return tuple(babilong.book(name, babilong.read_text(path), count_tokens) for path, name in self.names.items())


def babilong_cells(
    facts: Facts, books: Sequence[babilong.Book], lengths: Sequence[str], seed: int, renderer: Renderer, count_tokens: Callable[[str], int]
) -> list[Cell]:
    """A cell for each task and nominal length. count_tokens: what lengths are counted with. Raises BabilongError for a length."""
    room = renderer.size - renderer.around()

    def samples(task: str, length: int) -> Iterable[babilong.Conversation]:
        for sample in babilong.samples(facts.stories[task], books, length, seed, count_tokens):
            yield babilong.conversation(sample, renderer.count, room)

    return [
        Cell(task, babilong.parse_length(length), length, facts.floor(task), partial(samples, task, babilong.parse_length(length)))
        for task in facts.stories
        for length in lengths
    ]


def counter(file: Path | None) -> tuple[Callable[[str], int], str]:
    """What nominal lengths are counted with, and its name for the report: a tokenizer.json, or the estimate. Raises TokenizerError."""
    if file is None:
        return babilong.estimate, "an estimate of GPT-2's tokens (a word or a mark is one, long words more)"
    library = open_library(read_tokenizer(file), str(file), "give GPT-2's, or leave --counter out")
    return lambda text: len(ids_of(library, text)), f"the tokenizer {file.name}"


def digest(files: Iterable[Path]) -> str:
    """sha256 over names and contents, so that a run is not taken up again on other data."""
    whole = hashlib.sha256()
    for path in sorted(files):
        whole.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode("utf-8", "surrogateescape"))
    return whole.hexdigest()
