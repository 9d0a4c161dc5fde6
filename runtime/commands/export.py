"""`lm2 export MODEL DST`: reads the command line, calls the export, prints the summary. Knows no graph."""

import json
from pathlib import Path
from typing import Any

import click

from ...models.exported import OPSETS, PRECISIONS


@click.command("export")
@click.argument("model")
@click.argument("dst", type=click.Path(path_type=Path), required=False)
@click.option("--triton", type=click.Path(path_type=Path), metavar="DST", help="Write a Triton Inference Server model repository instead.")
@click.option("--triton-root", default="", metavar="PATH", help="Where the server will see that repository, if not at DST: /models.")
@click.option("--web", type=click.Path(path_type=Path), metavar="DST", help="Write a page that runs the model in a browser, with no server of its own.")
@click.option("--ort-web", type=click.Path(path_type=Path), metavar="FOLDER", help="With --web: npm's folder of onnxruntime-web [node_modules here or above].")
@click.option(
    "--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True, help="fp16 is for GPUs; int8 and int4 are weights."
)
@click.option("--opset", type=click.Choice([str(n) for n in OPSETS]), default="24", show_default=True, help="23 for older runtimes.")
@click.option(
    "--window",
    type=click.IntRange(min=1),
    metavar="N",
    help="Fix a window's positions in the file; else whoever runs it chooses. With --triton: 2048, or as many as the model has.",
)
@click.option("--no-memory", is_flag=True, help="The backbone alone.")
@click.option("--plain", is_flag=True, help="No custom nodes: the gated update as standard operators, int8 and int4 as MatMulNBits.")
@click.option("--portable", is_flag=True, help="ONNX's own operators instead of ONNX Runtime's fused ones: slower there, runs anywhere.")
@click.option(
    "--measure/--no-measure",
    default=None,
    help="int4: run the model, in float32 too, to say what 4 bits cost [if it has at most 2 GB in float32].",
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def command(
    model: str,
    dst: Path | None,
    triton: Path | None,
    triton_root: str,
    web: Path | None,
    ort_web: Path | None,
    precision: str,
    opset: str,
    window: int | None,
    no_memory: bool,
    plain: bool,
    portable: bool,
    measure: bool | None,
    as_json: bool,
) -> None:
    """Write MODEL, a model folder or a name such as smollm2, as one ONNX model into the new folder DST.

    DST then holds model.onnx, the tokenizer and the config: `lm2 chat DST` needs only ONNX Runtime, and other programs
    need only DST. Tokens and state go in, logits and state come out; docs/onnx.md names them. With --triton the server
    keeps the state of each conversation. With --web a browser runs the model; docs/web.md says how.
    """
    if sum(place is not None for place in (dst, triton, web)) != 1:
        raise click.UsageError("give a destination: either DST, or --triton DST, or --web DST")
    if ort_web is not None and web is None:
        raise click.UsageError(f"--ort-web {ort_web} needs --web DST")
    if web is not None and (precision != "fp32" or opset != "24" or window or no_memory or plain or portable):
        raise click.UsageError("--web chooses precision, opset, window and operators itself, and has the memory: leave those options out")
    if triton_root and triton is None:
        raise click.UsageError(f"--triton-root {triton_root} needs --triton DST")
    from ...models.atomic import check_new_folder
    from ...models.checkpoints import catalog
    from ..loading import find_model
    from .progress_bar import drawn

    check_new_folder(triton or web or dst or Path())  # before a model is pulled
    if web is not None:
        from ...export.web_ort import find_package

        find_package(ort_web)
    with drawn(quiet=as_json) as report:
        alone = catalog.BARE.get(model, "") if catalog.is_name(model) else ""
        source = find_model(alone or model, report)
        try:
            from ...export.export import export_model
            from ...export.options import Options
        except ModuleNotFoundError as error:
            if error.name and error.name.split(".")[0] == "onnx":
                raise click.ClickException("export needs the onnx package: pip install 'lm2[onnx]'") from None
            raise
        if web is not None:
            from ...export.web import export_web

            _say_web(export_web(source, web, ort_web, report), as_json)
            return
        options = Options(precision, int(opset), plain, portable, window or 0, memory=not (no_memory or alone))
        if triton is not None:
            from ...export.triton import export_repository

            summary = export_repository(source, triton, options, triton_root, report, measure_cost=measure)
        else:
            assert dst is not None
            summary = export_model(source, dst, options, report, measure_cost=measure)
            if not plain and precision != "fp16":
                from ...export.ops.build import ready

                ready(report)
    if as_json:
        click.echo(json.dumps(summary, indent=2))
        return
    node = "ai.lm2::GatedMemoryUpdate" if summary["custom_op"] else "standard operators"
    packed = ", ".join(f"{q['matrices']} matrices in {q['bits']} bits" for q in summary["quantized"])
    click.echo(
        f"{summary['name']}: {summary['precision']}, opset {summary['opset']}, {summary['bytes'] / 1e6:.0f} MB{packed and f' ({packed})'}"
    )
    products = "; matrices: ai.lm2::QLinear" if "QLinear" in summary["operators"] else ""
    click.echo(f"attention: {summary['attention']}; memory update: {node}{products}")
    if "triton" in summary:
        made = summary["triton"]
        click.echo(
            f"Triton model {made['model']}: {made['sequences']} conversations at once, windows of {made['window']} tokens, "
            f"{made['state_bytes'] / 1e6:.1f} MB of state each"
        )
        click.echo(f"operator library, as the server will see it: {made['library'] or 'none'}")
    click.echo(f"written to {summary['path']} in {summary['seconds']:.1f} s")


def _say_web(summary: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(summary, indent=2))
        return
    made = summary["web"]
    models = ", ".join(f"{m['name']} ({m['bytes'] / 1e6:.1f} MB)" for m in made["models"])
    click.echo(f"page with {models} and onnxruntime-web {made['onnxruntime_web']} ({made['onnxruntime_web_bytes'] / 1e6:.0f} MB)")
    click.echo(f"written to {summary['path']}; look at it: python -m http.server --directory {summary['path']} --bind 127.0.0.1 8000")
