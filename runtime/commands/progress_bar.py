"""Draws a conversion's or a download's reports: a bar on a terminal, one line per note elsewhere. Writes to stderr
only."""

from collections.abc import Iterator
from contextlib import contextmanager

import click

from ...models.checkpoints.progress import Event, Report
from .plain import console, lively


@contextmanager
def drawn(quiet: bool = False) -> Iterator[Report]:
    """A report function that draws with rich when stderr is a terminal; otherwise (or when quiet) it prints notes
    only."""
    if quiet or not lively():
        yield _notes
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console(stderr=True), transient=True) as progress:
        tasks: dict[str, TaskID] = {}

        def report(event: Event) -> None:
            if event.note:
                progress.console.print(event.stage, highlight=False, markup=False)
                return
            if event.stage not in tasks:
                for other in tasks.values():
                    progress.update(other, visible=False)
                tasks[event.stage] = progress.add_task(event.stage, total=event.total or None)
            progress.update(tasks[event.stage], completed=event.done)

        yield report


def _notes(event: Event) -> None:
    if event.note:
        click.echo(event.stage, err=True)
