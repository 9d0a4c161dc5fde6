"""How well a model predicts a text with its memory, and with the memory reset at each chunk border: two perplexities and their ratio.

The first token of a chunk has nothing before it in the chunk and is not scored; the first chunk of a text reads the never-written memory
either way and is left out of the figures. Knows ids and banks; books are cut by sources.py's files. Axes: b texts, t tokens.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ...models.tasks.babilong import read_text
from ...models.textfile import cut
from .cells import Cell
from .store import EvaluationError, Store
from .streams import Ids, Reader, Stopped

if TYPE_CHECKING:
    from ..loading import Model

LOGIT_BYTES = 400 << 20
RESAMPLES = 2000
LINE_MOST, PIECE = 1 << 15, 1000


class Losses(NamedTuple):
    """One text. memory, reset: nats of each chunk, one number a chunk; tokens: scored in each chunk."""

    number: int
    tokens: int
    memory: Sequence[float]
    reset: Sequence[float]


class Figures(NamedTuple):
    """A length's texts. ratio: perplexity with memory over that without, of all chunks but the first; low, high: its 95% bootstrap interval."""

    cell: Cell
    texts: tuple[Losses, ...]
    whole: bool
    memory: float
    reset: float
    ratio: float
    low: float | None
    high: float | None
    by_chunk: tuple[float, ...]


def texts(files: Sequence[Path], model: "Model", chunks: int, seed: int) -> Iterator[tuple[Ids, ...]]:
    """Endless texts of `chunks` full chunks, each from a drawn paragraph of a drawn book on. Raises EvaluationError when no book is long enough."""
    size = model.config.memory.chunk
    paragraphs = [_lines(read_text(file)) for file in files]
    number = 0
    while True:
        rng = random.Random(f"perplexity {chunks} {seed} {number}")
        for _ in range(100):
            book = rng.choice(paragraphs)
            ids = list(model.encode("", add_special=True))
            for line in islice(book, rng.randrange(max(1, len(book))), None):
                ids += model.encode(line, plain=True)
                if len(ids) >= chunks * size:
                    break
            if len(ids) >= chunks * size:
                break
        else:
            raise EvaluationError(f"the books have no {chunks * size} tokens in a row: give longer ones, or shorter --lengths")
        yield tuple(tuple(ids[i * size : (i + 1) * size]) for i in range(chunks))
        number += 1


def _lines(text: str) -> list[str]:
    """The lines of a book with their ends, those of more than LINE_MOST characters in pieces: a book of one line has many beginnings."""
    ended = [line + "\n" for line in text.removesuffix("\n").split("\n")] if text else []
    return [part for line in ended for part in (cut(line, PIECE) if len(line) > LINE_MOST else [line])]


def perplexity_cells(files: Sequence[Path], lengths: Sequence[tuple[int, str]], seed: int, model: "Model") -> list[Cell]:
    """A cell for each length in tokens, rounded down to whole chunks. Raises EvaluationError for less than two chunks."""
    size = model.config.memory.chunk
    for length, label in lengths:
        if length < 2 * size:
            raise EvaluationError(f"--lengths {label} has {length} tokens: perplexity needs two chunks of {size} at least")
    return [Cell("text", length, label, None, partial(texts, files, model, length // size, seed)) for length, label in lengths]


class Scorer:
    """Scores texts on one backend, `batch` at once."""

    def __init__(self, reader: Reader, batch: int):
        self.reader = reader
        c = reader.backend.config
        self.batch = max(1, min(batch, LOGIT_BYTES // (4 * c.memory.chunk * c.vocab_size)))

    def losses(self, cell: Cell, count: int, done: int = 0, fed: Callable[[int], None] = lambda tokens: None) -> Iterator[list[Losses]]:
        """Texts done .. count - 1 of a cell, batch by batch."""
        left = islice(enumerate(cell.samples()), done, count)
        while batch := list(islice(left, self.batch)):
            tokens = np.array([chunks for _, chunks in batch], dtype=np.int64)  # (b, chunks, t)
            never = np.concatenate([self.reader.initial] * len(batch), axis=1)  # (l, b, n, d)
            bank, with_memory, without = never, [], []
            for c in range(tokens.shape[1]):
                self.reader.check()
                loss, bank = self.reader.score(bank, c, tokens[:, c])
                with_memory.append(loss.sum(axis=1))
                without.append(with_memory[0] if c == 0 else self.reader.score(never, 0, tokens[:, c])[0].sum(axis=1))
                fed(tokens[:, c].size)
            scored = tokens.shape[2] - 1
            yield [
                Losses(number, scored, [float(x[i]) for x in with_memory], [float(x[i]) for x in without])
                for i, (number, _) in enumerate(batch)
            ]


def measure(
    scorer: Scorer, cells: Sequence[Cell], count: int, seed: int, store: Store | None, watch: Callable[[Cell, int], None]
) -> list[Figures]:
    """Score `count` texts of every cell; `watch` hears how many are done. A stop ends it early with what is there (run.py's rule)."""
    out: list[Figures] = []
    for cell in cells:
        name = f"{cell.name}-{cell.at}"
        rows: list[Losses] = store.load(name, Losses)[:count] if store else []
        stopped = False
        try:
            watch(cell, len(rows))
            for batch in scorer.losses(cell, count, len(rows)):
                rows += batch
                if store:
                    store.save(name, rows)
                watch(cell, len(rows))
        except (Stopped, KeyboardInterrupt):
            stopped = True
        if rows:
            out.append(figures(cell, rows, not stopped, seed))
        if stopped:
            break
    return out


def figures(cell: Cell, rows: Sequence[Losses], whole: bool, seed: int) -> Figures:
    """Perplexities and their ratio over rows, at least one; texts are resampled for the interval, which one text alone does not have."""
    memory = np.array([row.memory for row in rows])  # (b, chunks)
    reset = np.array([row.reset for row in rows])
    scored = rows[0].tokens
    later = slice(1, None)
    gain = (memory - reset)[:, later].sum(axis=1) / (scored * (memory.shape[1] - 1))  # (b,) nats a token
    ratio, low, high = math.exp(gain.mean()), None, None
    if len(rows) > 1:
        drawn = np.random.default_rng(seed).integers(0, len(rows), (RESAMPLES, len(rows)))
        ends = np.quantile(gain[drawn].mean(axis=1), [0.025, 0.975])
        # Where all texts gain the same, the means of the resamples and of the texts differ by their rounding: an interval holds its estimate.
        low, high = min(math.exp(ends[0]), ratio), max(math.exp(ends[1]), ratio)
    return Figures(
        cell, tuple(rows), whole, _perplexity(memory[:, later], scored), _perplexity(reset[:, later], scored), ratio, low, high,
        tuple(float(x) for x in np.exp((memory - reset).mean(axis=0) / scored)),
    )  # fmt: skip


def _perplexity(losses: np.ndarray, scored: int) -> float:
    return math.exp(losses.mean() / scored)
