"""Shows how an evaluation goes on: a bar on a terminal's stderr, else one line a finished cell. Writes to stderr only."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..evaluation.run import Watch
from .common import note
from .plain import console, lively

if TYPE_CHECKING:
    from ..evaluation.cells import Cell, Result


@contextmanager
def watching(title: str, cells: int) -> Iterator[Watch]:
    """A watch for a run of `cells` cells."""
    if not lively():
        yield _Lines(title)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[right]}"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console(stderr=True), transient=True) as progress:
        yield _Bar(title, cells, progress)


@contextmanager
def counting(title: str, count: int) -> Iterator[Callable[["Cell", int], None]]:
    """A function that hears how many of `count` samples of a cell are done."""
    if not lively():
        yield lambda cell, done: note(f"{_name(title, cell)}: {done} of {count}") if done == count else None
        return
    from rich.progress import Progress

    with Progress(console=console(stderr=True), transient=True) as progress:
        tasks: dict[str, Any] = {}

        def heard(cell: "Cell", done: int) -> None:
            if cell.label not in tasks:
                tasks[cell.label] = progress.add_task(_name(title, cell), total=count)
            progress.update(tasks[cell.label], completed=done)

        yield heard


class _Lines(Watch):
    def __init__(self, title: str):
        self.title = title
        self.started, self.tokens = time.monotonic(), 0

    def began(self, cell: "Cell", done: int, count: int) -> None:
        self.started, self.tokens = time.monotonic(), 0

    def fed(self, tokens: int) -> None:
        self.tokens += tokens

    def ended(self, result: "Result") -> None:
        seconds = time.monotonic() - self.started
        note(f"{_name(self.title, result.cell)}: {_shares(result)}, {result.asked} samples, {self.tokens} tokens read in {seconds:.0f} s")


class _Bar(Watch):
    def __init__(self, title: str, cells: int, progress: Any):
        self.title, self.cells, self.progress, self.number = title, cells, progress, 0
        self.task: Any = None
        self.tokens, self.shares = 0, ""

    def began(self, cell: "Cell", done: int, count: int) -> None:
        self.number += 1
        if self.task is not None:
            self.progress.remove_task(self.task)
        words = f"{self.number}/{self.cells} {_name(self.title, cell)}"
        self.task = self.progress.add_task(words, total=count, completed=done, right="")
        self.tokens, self.shares = 0, ""

    def fed(self, tokens: int) -> None:
        self.tokens += tokens
        self.progress.update(self.task, right=f"{self.shares}{self.tokens / 1e3:.0f}k tokens")

    def more(self, result: "Result") -> None:
        self.shares = f"{_shares(result)}, "
        self.progress.update(self.task, completed=result.asked)


def _name(title: str, cell: "Cell") -> str:
    return f"{title} {cell.name}, {cell.label}"


def _shares(result: "Result") -> str:
    if not result.asked:
        return "nothing yet"
    return f"{100 * result.right / result.asked:.1f}% right, {100 * result.control_right / result.asked:.1f}% without memory"
