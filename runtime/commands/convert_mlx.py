"""The `--mlx` of `lm2 convert`: calls the packing and prints what was packed, what was not, and why. Knows no format."""

import json
from pathlib import Path
from typing import Any

import click

from ...models.checkpoints.progress import Report
from ...models.checkpoints.warmstart import MemoryRequest


def pack(
    src: Path,
    dst: Path,
    request: MemoryRequest,
    bits: str | None,
    group_size: str | None,
    dtype: str,
    config: Path | None,
    name: str | None,
    as_json: bool,
    report: Report,
) -> None:
    """Make the packed folder and print its summary. Raises BackendError without the extra, else as `convert_mlx` does."""
    from ...models.errors import BackendError
    from ..backend import installed

    if not installed("mlx"):
        raise BackendError("--mlx needs MLX, which is not installed: pip install 'lm2[mlx]'")
    from ...lm2_mlx.convert import convert_mlx

    summary = convert_mlx(
        src,
        dst,
        request,
        bits=int(bits) if bits else None,
        group_size=int(group_size) if group_size else None,
        dtype=dtype,
        config=config,
        name=name,
        report=report,
    )
    if as_json:
        click.echo(json.dumps(summary, indent=2))
        return
    for note in summary["notes"]:
        click.echo(f"note: {note}", err=True)
    how = "the GGUF's own numbers, none rounded" if summary["method"] == "repacked" else "rounded"
    click.echo(f"{summary['name']}: {summary['bytes'] / 1e6:.0f} MB from {summary['source_bytes'] / 1e6:.0f} MB, for --backend mlx ({how})")
    for heading, items in _grouped(summary).items():
        click.echo(f"{heading}: {', '.join(items)}")
    click.echo(f"sessions: those of model {summary['fingerprint'][:12]}, in both directions")
    click.echo(f"written to {summary['path']} in {summary['seconds']:.1f} s")


def _grouped(summary: dict[str, Any]) -> dict[str, list[str]]:
    """Kinds of tensors under what happened to them."""
    out: dict[str, list[str]] = {}
    for q in summary["quantized"]:
        out.setdefault(f"packed to {q['bits']} bits in groups of {q['group_size']}", []).append(f"{q['count']} x {q['tensors']}")
    for s in summary["skipped"]:
        out.setdefault(f"kept ({s['why']})", []).append(f"{s['count']} x {s['tensors']}")
    return out
