"""MMLU: which of four letters a model finds likeliest, after five solved examples read in earlier chunks, and without them.

The examples are in the memory only, never in the question's chunk: the control has no examples. Files are mmlu_files.py's.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...models.tasks.scoring import majority
from .cells import Cell, Outcome
from .mmlu_files import LETTERS, Choice, subjects
from .streams import Ids, Reader, surprise

if TYPE_CHECKING:
    from ..loading import Model

EXAMPLES = 5


def mmlu_cells(folder: Path, only: Sequence[str]) -> tuple[list[Cell], list[Path]]:
    """A cell for each subject, and the files they are from. Raises EvaluationError when files are missing."""
    cells: list[Cell] = []
    used: list[Path] = []
    for name, subject in subjects(folder, only).items():
        examples = subject.examples[:EXAMPLES]
        samples = partial(_samples, examples, subject.asked)
        cells.append(Cell(name, 0, f"{len(examples)} examples", majority(c.right for c in subject.asked), samples))
        used += subject.files
    return cells, list(dict.fromkeys(used))


class LetterExaminer:
    """Answers multiple-choice questions with one model: the likeliest letter after `Answer:`. batch: questions of one length at once."""

    def __init__(self, model: "Model", reader: Reader, batch: int):
        self.model, self.reader, self.batch = model, reader, batch
        self.size = model.config.memory.chunk

    def outcomes(self, cell: Cell, count: int, done: int = 0, fed: Callable[[int], None] = lambda tokens: None) -> Iterator[list[Outcome]]:
        """Questions done .. count - 1 of a subject, batch by batch, until there are no more."""
        samples = cell.samples()
        introduction = f"The following are multiple choice questions (with answers) about {cell.name.replace('_', ' ')}.\n\n"
        left = islice(enumerate(samples), done, count)
        bank: np.ndarray | None = None
        read: tuple[Ids, ...] = ()
        while batch := list(islice(left, self.batch)):
            if bank is None:
                read = self._chunks([introduction + batch[0][1][0][0].text(True), *(c.text(True) for c in batch[0][1][0][1:])])
                bank = self.reader.read([read], fed)[0]
            questions = [(number, choice) for number, (_, choice) in batch]
            yield [
                self._outcome(number, cell.name, choice, read, self._letter(choice, bank, len(read)), self._letter(choice, None, 0))
                for number, choice in questions
            ]

    def _outcome(self, number: int, subject: str, choice: Choice, read: tuple[Ids, ...], reply: str, control: str) -> Outcome:
        return Outcome(
            number, subject, 1, len(read), sum(map(len, read)), choice.question[:200], choice.right, reply, reply == choice.right,
            control, control == choice.right,
        )  # fmt: skip

    def _letter(self, choice: Choice, bank: np.ndarray | None, chunks: int) -> str:
        """The likeliest letter, reading `bank`, (l, 1, n, d), or the never-written one. A question longer than a chunk begins in chunks before."""
        backend = self.reader.backend
        text = choice.text(False)
        ids = self.model.encode(text, add_special=True, plain=True)
        endings = [self._ending(text, ids, letter) for letter in LETTERS]
        room = self.size - max(map(len, endings))
        begin = (len(ids) - 1) // room * room
        state = self.reader.initial if bank is None else bank
        for i in range(0, begin, room):
            if bank is not None:
                state = self.reader.step(state, chunks + i // room, [tuple(ids[i : i + room])])
        self.reader.check()
        logits, chunk = backend.extend(np.array(ids[begin:], dtype=np.int64), backend.start(1, backend.from_host(state, 0)))  # (1, v)
        losses = []
        for ending in endings:
            rows = logits
            if len(ending) > 1:
                more, _ = backend.extend(np.array(ending[:-1], dtype=np.int64), backend.rewind(chunk, len(ids) - begin), all_logits=True)
                rows = np.concatenate((logits, more[0]))  # (tokens of the ending, v)
            losses.append(float(surprise(rows, np.array(ending)).sum()))
        return LETTERS[int(np.argmin(losses))]

    def _ending(self, text: str, ids: Sequence[int], letter: str) -> list[int]:
        """The letter's tokens after the question's, as one encodes both together where that keeps the question's."""
        whole = self.model.encode(f"{text} {letter}", add_special=True, plain=True)
        return whole[len(ids) :] if whole[: len(ids)] == list(ids) else self.model.encode(f" {letter}", plain=True)

    def _chunks(self, parts: Sequence[str]) -> tuple[Ids, ...]:
        """Examples as chunks: as many whole ones in each as fit; one that is longer than a chunk is cut."""
        chunks: list[Ids] = []
        for part in parts:
            ids = tuple(self.model.encode(part, add_special=not chunks, plain=True))
            if chunks and len(chunks[-1]) + len(ids) <= self.size:
                chunks[-1] += ids
            else:
                chunks += [ids[i : i + self.size] for i in range(0, len(ids), self.size)]
        return tuple(chunks)


def _samples(examples: tuple[Choice, ...], asked: tuple[Choice, ...]) -> Iterator[tuple[tuple[Choice, ...], Choice]]:
    for choice in asked:
        yield examples, choice
