"""`lm2 build-ops`: builds the library of the custom op. Knows the command line; export/ops/build.py does the work."""

import json
from pathlib import Path

import click


@click.command("build-ops", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=None, help="Write the library here, not into the cache.")
@click.option("--cuda", is_flag=True, help="Add the CUDA kernels; needs nvcc.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(out: Path | None, cuda: bool, as_json: bool) -> None:
    """Build the library of ai.lm2::GatedMemoryUpdate for ONNX Runtime, with the C compiler named by CC, or cc, gcc or clang.

    Exported models run without it; with it ONNX Runtime uses a native kernel (docs/ops.md). A library in the cache is built once
    and found by `--backend onnx`.
    """
    from ...export.ops import DOMAIN, NAME, VERSION
    from ...export.ops.build import build, library

    path = (build(out, cuda) if out is not None else library(cuda)).absolute()
    if as_json:
        facts = {"library": str(path), "bytes": path.stat().st_size, "op": f"{DOMAIN}::{NAME}", "version": VERSION, "cuda": cuda}
        click.echo(json.dumps(facts, indent=2))
        return
    click.echo(f"{path}\nUse it: session_options.register_custom_ops_library({str(path)!r})")
