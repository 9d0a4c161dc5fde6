"""`lm2 convert SRC DST`: reads the command line, calls the conversion, prints the summary. Knows no format."""

import json
from pathlib import Path

import click


def parse_layers(ctx: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...] | None:
    """`auto` -> None; `15,18,21` -> (15, 18, 21). Raises click.BadParameter."""
    if value == "auto":
        return None
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} must be auto or layer numbers such as 15,18,21") from None


@click.command("convert")
@click.argument("src", type=click.Path(path_type=Path))
@click.argument("dst", type=click.Path(path_type=Path))
@click.option(
    "--memory-cell",
    type=click.Choice(["gated", "released"]),
    help="Memory given to a Llama [gated]. A .pth brings its own.",
)
@click.option(
    "--memory-layers",
    default="auto",
    show_default=True,
    callback=parse_layers,
    help="Layers with a memory, such as 15,18,21.",
)
@click.option("--memory-slots", type=click.IntRange(1), help="Rows of a memory bank [512].")
@click.option("--memory-chunk", type=click.IntRange(1), help="Tokens per chunk [as many as slots].")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="auto: the source's own; float32 for quantised GGUF.",
)
@click.option("--config", type=click.Path(path_type=Path), help="config.json of a .pth checkpoint [the one beside it].")
@click.option(
    "--gate-pool",
    type=click.Choice(["chunk", "causal"]),
    help="Cell released: chunk is the checkpoint's function, causal streams [chunk].",
)
@click.option(
    "--memory-scale",
    type=click.FloatRange(0, 1),
    default=2.0**-7,
    show_default="1/128",
    help="How loud the new, untrained memory is heard (cell gated): its output projection is the layer's own times this.",
)
@click.option("--name", help="Name kept in the model's config [DST's].")
@click.option(
    "--adapter",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of a trained memory made by `lm2 train`, for the backbone it was trained on.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help=("For the new memory's random weights."))
@click.option("--mlx", is_flag=True, help="Pack the weights for the mlx backend. SRC may also be a model folder.")
@click.option("--bits", type=click.Choice(["4", "8"]), help="With --mlx [4]. A GGUF's own numbers are kept as they are.")
@click.option("--group-size", type=click.Choice(["32", "64", "128"]), help="With --mlx: weights that share a scale [64].")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def command(
    src: Path,
    dst: Path,
    memory_cell: str | None,
    memory_layers: tuple[int, ...] | None,
    memory_slots: int | None,
    memory_chunk: int | None,
    memory_scale: float,
    adapter: Path | None,
    dtype: str,
    config: Path | None,
    gate_pool: str | None,
    name: str | None,
    seed: int,
    mlx: bool,
    bits: str | None,
    group_size: str | None,
    as_json: bool,
) -> None:
    """Turn a checkpoint into a model folder.

    SRC is a Hugging Face folder or a GGUF file of a Llama or another family of docs/models.md, or a ckpt_iter_*.pth of
    the released LM2 code. DST is a new folder.

    The model gets a memory that starts from its own attention. Until something is written into it, it computes exactly
    what it did before; it has to be trained before it remembers.

    With --mlx, DST holds 4- or 8-bit weights that only the mlx backend opens. Conversations of the unpacked model open
    on it, and the other way round.
    """
    from ...models.checkpoints.convert import convert
    from ...models.checkpoints.warmstart import MemoryRequest
    from .progress_bar import drawn

    request = MemoryRequest(memory_cell, memory_layers, memory_slots, memory_chunk, gate_pool, seed, memory_scale, adapter)
    if not mlx and (bits or group_size):
        raise click.UsageError("--bits and --group-size need --mlx")
    if mlx:
        from .convert_mlx import pack

        with drawn(quiet=as_json) as report:
            pack(src, dst, request, bits, group_size, dtype, config, name, as_json, report)
        return
    with drawn(quiet=as_json) as report:
        summary = convert(src, dst, request, dtype=dtype, config=config, name=name, report=report)
    if as_json:
        click.echo(json.dumps(summary, indent=2))
        return
    for note in summary["notes"]:
        click.echo(f"note: {note}", err=True)
    memory = summary["memory"]
    layers = ",".join(map(str, memory["layers"]))
    state = "trained" if memory["trained"] else "not trained yet"
    click.echo(
        f"{summary['name']}: {summary['layers']} layers, {summary['parameters'] / 1e6:.1f}M parameters, "
        f"{summary['dtype']}, {summary['bytes'] / 1e6:.0f} MB"
    )
    click.echo(f"memory: cell {memory['cell']}, layers {layers}, {memory['slots']} slots, chunks of {memory['chunk']} ({state})")
    if summary["license"]:
        click.echo(f"licence: {summary['license']}")
    click.echo(f"written to {summary['path']} in {summary['seconds']:.1f} s")
