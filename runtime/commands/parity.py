"""`lm2 parity`: the same tokens through several backends, every difference beside its gate. Exit code 0 if all gates hold, 1 if not."""

import json
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from .common import open_model
from .plain import console, lively

if TYPE_CHECKING:
    from ..loading import Model
    from ..parity.sides import Spec

CHUNKS, GREEDY, SEED = 4, 200, 0


@click.command("parity", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model")
@click.option("--backends", required=True, metavar="A,B[,...]", help="The reference first. Each: NAME[:DTYPE][:DEVICE][@FOLDER].")
@click.option(
    "--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="float32", show_default=True,
    help="Precision of the backends that name none.",
)  # fmt: skip
@click.option("--device", default="auto", show_default=True, help="Device of the backends that name none.")
@click.option("--threads", type=click.IntRange(0), default=0, help="CPU threads; 0 leaves it to the library.")
@click.option("--chunks", type=click.IntRange(1), default=CHUNKS, show_default=True, help="Chunks whose logits and banks are compared.")
@click.option("--tokens", type=click.IntRange(0), default=0, help="Tokens of a chunk; 0 is the model's chunk.")
@click.option("--drift", type=click.IntRange(0), default=0, metavar="N", help="Go on to N chunks in all, comparing banks only.")
@click.option(
    "--greedy", type=click.IntRange(0), default=GREEDY, show_default=True, help="Greedy tokens of the conversations; 0 leaves them out."
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=SEED, show_default=True, help="Decides every token that is fed.")
@click.option("--explain", is_flag=True, help="Name the first layer and tensor that disagree.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object (docs/parity.md).")
def command(
    model: str, backends: str, dtype: str, device: str, threads: int, chunks: int, tokens: int, drift: int, greedy: int, seed: int,
    explain: bool, as_json: bool,
) -> int:  # fmt: skip
    """Compare backends on the same tokens: logits, memory, greedy answers, and a session carried from one to the other.

    MODEL is a model folder or a name such as smollm2. `--backends torch,mlx,mlx@small-4bit` compares MLX, and MLX with the
    packed weights in the folder small-4bit, with PyTorch. Exit code: 0 every gate holds, 1 one does not, 2 the command line is wrong.
    """
    from ...models.errors import BackendError
    from ..parity.sides import Side, parse, same_model

    try:
        specs = parse(backends)
    except BackendError as error:
        raise click.UsageError(str(error)) from None
    os.environ.setdefault("MLX_ENABLE_TF32", "0")  # float32 means float32; read by MLX when it first multiplies on a GPU

    def opened(spec: "Spec") -> "Model":
        return open_model(spec.folder or model, spec.backend, spec.device or device, spec.dtype or dtype, threads)

    reference = Side(specs[0].label, opened(specs[0]))
    size = reference.model.config.memory.chunk
    if tokens > size:
        raise click.UsageError(f"--tokens {tokens} do not fit in a chunk of {size}: give at most {size}")
    from ..parity.report import document, explanation_lines, header, table, verdict
    from ..parity.run import Settings, compare

    settings = Settings(chunks, tokens, seed, drift, greedy, explain)
    pairs = []
    for spec in specs[1:]:
        pairs.append(compare(reference, same_model(reference, opened(spec), spec.label), settings, _progress(spec.label)))
    _progress("")("")
    if as_json:
        click.echo(json.dumps(document(reference, pairs, settings), indent=2, allow_nan=False))
    else:
        shown = console()
        shown.print("\n".join(header(reference, pairs, settings)), markup=False)
        for pair in pairs:
            shown.print()
            shown.print(table(reference, pair))
            if pair.explanation is not None:
                shown.print("\n".join(explanation_lines(pair.label, pair.explanation)), markup=False)
        shown.print(f"\n{verdict(pairs)}", markup=False)
    return 0 if all(pair.passed for pair in pairs) else 1


def _progress(label: str) -> Callable[[str], None]:
    """Says on a terminal's stderr, in place, what is being measured."""

    def say(text: str) -> None:
        if lively():
            click.echo(f"\r\x1b[K{label}{': ' if text else ''}{text}", nl=False, err=True)

    return say
