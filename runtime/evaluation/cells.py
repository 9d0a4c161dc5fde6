"""A cell of the result: samples of one kind at one length or distance, answered with the memory and without it. Knows scoring and batches.

The control without memory is a bank that is reset to the never-written one at each chunk border. The question's chunk then starts from
that bank whatever was read before, so the question alone is asked: the same numbers for less work.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from ...models.tasks.babi import labels
from ...models.tasks.recall import Conversation
from ...models.tasks.scoring import Floor, is_right, is_right_published, majority, wilson
from .render import Renderer
from .streams import Ids, Reader

if TYPE_CHECKING:
    from ..loading import Model


class Outcome(NamedTuple):
    """One sample, answered twice. tokens, chunks: read before the question. control: the answer without memory."""

    number: int
    kind: str
    distance: int
    chunks: int
    tokens: int
    question: str
    answer: str
    reply: str
    right: bool
    control: str
    control_right: bool


class Cell(NamedTuple):
    """What is asked. name: such as `qa1` or `story`; at: length in tokens or distance in chunks; label: that for people; floor: of all its answers.

    samples(): what the examiner of the task takes: conversations, or multiple-choice questions.
    """

    name: str
    at: int
    label: str
    floor: Floor | None
    samples: Callable[[], Iterable[Any]]


class Result(NamedTuple):
    """A cell and what came out, in the samples' order; `whole` when all that was asked for is there."""

    cell: Cell
    outcomes: tuple[Outcome, ...]
    whole: bool

    @property
    def asked(self) -> int:
        return len(self.outcomes)

    @property
    def right(self) -> int:
        return sum(o.right for o in self.outcomes)

    @property
    def control_right(self) -> int:
        return sum(o.control_right for o in self.outcomes)

    @property
    def published(self) -> int:
        """How many are right by BABILong's own rule. Raises BabiError for outcomes that are none of bAbI's tasks."""
        return sum(is_right_published(o.reply, o.answer, labels(o.kind), o.question) for o in self.outcomes)

    @property
    def floor(self) -> Floor | None:
        """The commonest answer's share: of the split the samples are drawn from where that is known, else of the samples."""
        return self.cell.floor or (majority(o.answer for o in self.outcomes) if self.outcomes else None)

    def interval(self, control: bool = False) -> tuple[float, float]:
        """Wilson's 95% interval of the accuracy, 0 to 1."""
        return wilson(self.control_right if control else self.right, self.asked)


class Examiner:
    """Answers cells with one model. batch: streams at once. The control's answers are kept: a question asked again costs nothing."""

    def __init__(self, model: "Model", renderer: Renderer, reader: Reader, batch: int):
        self.model, self.renderer, self.reader, self.batch = model, renderer, reader, batch
        self._controls: dict[Ids, str] = {}

    def outcomes(self, cell: Cell, count: int, done: int = 0, fed: Callable[[int], None] = lambda tokens: None) -> Iterator[list[Outcome]]:
        """Samples done .. count - 1 of the cell, batch by batch. Each depends on its number alone, so a run may go on where one stopped."""
        samples = enumerate(cell.samples())
        for _ in islice(samples, done):
            pass
        left = islice(samples, count - done)
        while batch := list(islice(left, self.batch)):
            yield self._answered(batch, fed)

    def _answered(self, batch: Sequence[tuple[int, Conversation]], fed: Callable[[int], None]) -> list[Outcome]:
        streams = [self.renderer.stream(conversation) for _, conversation in batch]
        banks = self.reader.read([s.chunks for s in streams], fed)
        replies = [self._text(ids) for ids in self.reader.ask(banks, [s.question for s in streams], self.batch)]
        new = list(dict.fromkeys(s.question for s in streams if s.question not in self._controls))
        for question, ids in zip(new, self.reader.ask([self.reader.initial] * len(new), new, self.batch), strict=True):
            self._controls[question] = self._text(ids)
        out = []
        for (number, c), stream, reply in zip(batch, streams, replies, strict=True):
            control = self._controls[stream.question]
            read = len(stream.chunks), sum(map(len, stream.chunks))
            right, control_right = (is_right(text, c.answer, c.labels, c.question) for text in (reply, control))
            out.append(Outcome(number, c.kind, c.distance, *read, c.question, c.answer, reply, right, control, control_right))
        return out

    def _text(self, ids: Ids) -> str:
        return self.model.text.decode(ids, skip_special=True).strip()
