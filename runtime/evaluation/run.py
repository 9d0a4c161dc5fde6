"""Runs the cells of an evaluation one after another, keeping answers as they come. Survives a stop with what is there. Draws nothing."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from .cells import Cell, Outcome, Result
from .store import Store
from .streams import Stopped


class Answering(Protocol):
    """Whatever answers a cell's samples `done` .. `count` - 1, batch by batch."""

    def outcomes(self, cell: Cell, count: int, done: int = 0, fed: Callable[[int], None] = ...) -> Iterator[list[Outcome]]: ...


class Watch:
    """Hears how a run goes on; this one does nothing. `began` and `ended` bracket a cell, `more` follows each batch, `fed` each step."""

    def began(self, cell: Cell, done: int, count: int) -> None: ...

    def fed(self, tokens: int) -> None: ...

    def more(self, result: Result) -> None: ...

    def ended(self, result: Result) -> None: ...


def run(examiner: Answering, cells: Sequence[Cell], count: int, store: Store | None = None, watch: Watch | None = None) -> list[Result]:
    """Answer `count` samples of every cell, going on after those in `store`. A stop (Stopped, Ctrl-C) ends the run early: the results so far.

    A cell that was not begun is left out; one that was not finished is not `whole`.
    """
    watch = watch or Watch()
    results: list[Result] = []
    for cell in cells:
        name = f"{cell.name}-{cell.at}"
        outcomes: list[Outcome] = store.load(name, Outcome)[:count] if store else []
        kept = len(outcomes)
        stopped = False
        try:
            watch.began(cell, kept, count)
            for batch in examiner.outcomes(cell, count, kept, watch.fed):
                outcomes += batch
                if store:
                    store.save(name, outcomes)
                watch.more(Result(cell, tuple(outcomes), False))
        except (Stopped, KeyboardInterrupt):
            stopped = True
        result = Result(cell, tuple(outcomes), not stopped)
        if outcomes or not stopped:
            results.append(result)
        watch.ended(result)
        if stopped:
            break
    return results
