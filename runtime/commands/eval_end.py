"""How an evaluation ends: result.json and a figure in its folder, and on stdout a table or JSON."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ...models.errors import BackendError
from .common import need_folder, note
from .plain import console

if TYPE_CHECKING:
    from rich.table import Table


class Done(NamedTuple):
    """What came out: JSON, a table, and a figure to be drawn into a path."""

    document: dict[str, Any]
    table: "Table"
    draw: Callable[[Path], None]


def ready(out: Path | None, picture: str) -> Path | None:
    """A folder that can be written, with `result.json` and `picture` in it. Raises WriteError before any work is done."""
    if out is None:
        return None
    from ...models.atomic import check_file, check_folder

    need_folder(out)
    out = check_folder(out)
    for name in ("result.json", picture):
        check_file(out / name)
    return out


def tell(done: Done, head: Sequence[str], out: Path | None, picture: str, as_json: bool) -> None:
    """Write and print what came out, below the lines of `head`. Raises click.Abort where the run was stopped, when all is written."""
    from ..evaluation.store import write_json

    report = done.document
    if out is not None:
        write_json(out / "result.json", report)
        if any(cell["count"] for cell in report["cells"]):
            _drawn(done.draw, out / picture)
    if as_json:
        click.echo(json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False))
    else:
        out_console = console()
        out_console.print("\n".join(head), markup=False)
        out_console.print()
        out_console.print(done.table)
    if not report["whole"]:
        if out is not None:
            note(f"stopped; the same command goes on from what is in {out}")
        raise click.Abort


def _drawn(draw: Callable[[Path], None], path: Path) -> None:
    """Draw a figure, or say in one line why there is none."""
    try:
        draw(path)
    except BackendError as error:
        note(str(error))
