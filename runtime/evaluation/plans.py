"""From what a user asks to cells and who answers them, for every task; and the settings a run is known by. Knows options and files, no terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...models.tasks.babilong import parse_length
from . import sources
from .cells import Cell, Examiner
from .mmlu import LetterExaminer, mmlu_cells
from .perplexity import Scorer, perplexity_cells
from .render import Renderer
from .run import Answering
from .streams import Reader

if TYPE_CHECKING:
    from ..loading import Model


@dataclass(frozen=True)
class Asked:
    """The command line. data is None for recall only; lengths, distances, only: as given, split at commas."""

    task: str
    data: Path | None
    lengths: Sequence[str]
    distances: Sequence[int]
    only: Sequence[str]
    part: str
    seed: int
    system: str | None
    chunk: int | None
    counter: Path | None


@dataclass(frozen=True)
class Plan:
    """cells and who answers them: an examiner, or a scorer for perplexity. settings: what a run is known by; words: the same for people."""

    cells: list[Cell]
    examiner: Answering | None
    scorer: Scorer | None
    settings: dict[str, Any]
    words: dict[str, str]


def plan(asked: Asked, model: "Model", reader: Reader, batch: int) -> Plan:
    """What to do. Raises an LM2Error naming the option or the file that cannot be used."""
    about = model.backend.describe()
    settings = {
        "task": asked.task, "model": model.name, "fingerprint": model.fingerprint, "backend": about.backend, "device": about.device,
        "dtype": about.dtype, "quantization": about.quantization, "seed": asked.seed,
    }  # fmt: skip
    make = {"recall": _recall, "babilong": _babilong, "perplexity": _perplexity, "mmlu": _mmlu}[asked.task]
    made = make(asked, model, reader, batch)
    return Plan(made.cells, made.examiner, made.scorer, settings | made.settings, made.words)


def _recall(asked: Asked, model: "Model", reader: Reader, batch: int) -> Plan:
    renderer = Renderer(model, asked.system, asked.chunk, reader.longest)
    cells = sources.recall_cells(asked.only or ("story",), asked.distances, asked.part, asked.seed, renderer)
    part = "validation" if asked.part == "auto" else asked.part
    words = {"samples": f"drawn from the {part} part, seed {asked.seed}; greedy answers of at most {reader.longest} tokens"}
    return Plan(cells, Examiner(model, renderer, reader, batch), None, _chunks(asked, renderer, reader) | {"part": part}, words)


def _babilong(asked: Asked, model: "Model", reader: Reader, batch: int) -> Plan:
    assert asked.data is not None
    renderer = Renderer(model, asked.system, asked.chunk, reader.longest)
    facts = sources.Facts(asked.data, asked.part, asked.only)
    count_tokens, counted = sources.counter(asked.counter)
    library = sources.Library(asked.data, facts.part) if any(map(parse_length, asked.lengths)) else None
    books = library.books(count_tokens) if library else ()
    cells = sources.babilong_cells(facts, books, asked.lengths, asked.seed, renderer, count_tokens)
    words = {
        "facts": f"{facts.part} part, {sum(map(len, facts.stories.values()))} stories; seed {asked.seed}; whole words are scored",
        "books": ", ".join(book.name for book in books) or "none",
        "lengths": f"counted with {counted}",
    }
    files = [*facts.files.values(), *(library.files if library else ())]
    settings = _chunks(asked, renderer, reader) | {"part": facts.part, "counter": counted, "data": sources.digest(files)}
    return Plan(cells, Examiner(model, renderer, reader, batch), None, settings, words)


def _perplexity(asked: Asked, model: "Model", reader: Reader, batch: int) -> Plan:
    assert asked.data is not None
    library = sources.Library(asked.data, asked.part)
    cells = perplexity_cells(library.files, [(parse_length(text), text) for text in asked.lengths], asked.seed, model)
    part = "train" if asked.part == "train" else "held-out"
    words = {"books": f"{', '.join(path.stem for path in library.files)} ({part}); seed {asked.seed}"}
    return Plan(cells, None, Scorer(reader, batch), {"part": part, "data": sources.digest(library.files)}, words)


def _mmlu(asked: Asked, model: "Model", reader: Reader, batch: int) -> Plan:
    assert asked.data is not None
    cells, files = mmlu_cells(asked.data, asked.only)
    words = {"questions": f"{len(cells)} subjects, the likeliest letter after `Answer:`; examples are read in chunks before"}
    return Plan(cells, LetterExaminer(model, reader, batch), None, {"data": sources.digest(files)}, words)


def _chunks(asked: Asked, renderer: Renderer, reader: Reader) -> dict[str, Any]:
    return {"system": asked.system, "chunk": renderer.size, "answer_tokens": reader.longest}
