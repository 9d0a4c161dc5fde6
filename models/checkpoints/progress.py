"""How a conversion or a download says what it is doing. Knows no terminal: whoever calls decides what to draw."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """One report. A note is a sentence to be shown once; otherwise `done` of `total` bytes (None: not known) of
    `stage` are through."""

    stage: str
    done: int = 0
    total: int | None = None
    note: bool = False


Report = Callable[[Event], None]


def silent(event: Event) -> None:
    """Report nothing."""


class Counter:
    """Adds up the bytes of one stage and reports each step."""

    def __init__(self, report: Report, stage: str, total: int | None):
        self._report, self._stage, self._total, self._done = report, stage, total, 0
        report(Event(stage, 0, total))

    def add(self, count: int) -> None:
        self._done += count
        self._report(Event(self._stage, self._done, self._total))
