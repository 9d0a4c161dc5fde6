"""`lm2 info`: what a model folder or a session file holds, without loading weights."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from .common import megabytes


@click.command("info", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("target")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--model", default=None, help="Whose tokenizer tells the words of a session (default: its own model, where it can be found by name).")
def command(target: str, as_json: bool, model: str | None) -> None:
    """Show what TARGET is: a model folder, a name such as smollm2, or a session file (.lm2s). Checks it on the way."""
    from ...models.checkpoints.catalog import is_name

    path = Path(target)
    session = not is_name(target) and (path.is_file() or (path.suffix == ".lm2s" and not path.exists()))
    facts = session_facts(path, model) if session else model_facts(target)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    held = facts.pop("held", [])
    width = max(map(len, facts))
    for key, value in facts.items():
        if value is not None and value != []:
            click.echo(f"{key.replace('_', ' '):<{width}}  {_readable(key, value)}")
    if held:
        _show(held)


def model_facts(target: str) -> dict[str, Any]:
    """Facts about a model folder, one that comes with the package, or a catalogue name that is installed. Raises ModelFileError or ConfigError."""
    from ...models.checkpoints import catalog
    from ...models.config import read_json
    from ...models.errors import ModelFileError
    from ...models.home import shipped_model
    from ...models.layout import CONFIG, open_folder, tensor_shapes

    path = Path(target)
    if catalog.is_name(target):
        found = shipped_model(target) or catalog.resolve(target)
        if found is None:
            raise ModelFileError(f"model {target} is not here yet: lm2 pull {target}")
        path = found
    folder = open_folder(path, quantized=True, exported=True)
    c, m, packed = folder.config, folder.config.memory, folder.quantization
    counts = {n: _count(shape) for n, shape in tensor_shapes(c).items()}
    parameters = sum(counts.values())
    memory = sum(count for n, count in counts.items() if ".memory." in n)
    export = folder.export
    source = path / "source.json"
    return {
        "kind": "model", "path": str(path), "name": c.name or path.name, "config": str(path / CONFIG),
        "parameters": parameters, "memory_parameters": memory, "weights_bytes": folder.header.file_bytes,
        "dtypes": sorted({t.dtype for t in folder.header.tensors.values()}),
        "layers": c.num_hidden_layers, "hidden_size": c.hidden_size, "vocab_size": c.vocab_size,
        "memory_cell": m.cell, "memory_slots": m.slots, "memory_chunk": m.chunk, "memory_layers": list(m.layers), "memory_trained": m.trained,
        "state_bytes": 4 * _count(c.bank_shape()), "fingerprint": folder.fingerprint,
        "packed": packed and f"{packed.bits} bits, groups of {packed.group_size}, for MLX ({packed.method})",
        "recall": _recall(path),
        "exported": export and f"ONNX, {export.precision}, opset {export.opset}, {export.attention}",
        "source": read_json(source) if source.is_file() else None,
    }  # fmt: skip


def _recall(path: Path) -> str | None:
    """What a model answers from what was told with, if it has that."""
    from ...models.checkpoints.recalls import place_of
    from ...models.config import read_config
    from ...models.recall import open_recall

    place = place_of(path)
    if place is None:
        return None
    recall = open_recall(place, read_config(path))
    return f"{recall.opening.positions} positions, finder of width {recall.finder.asking.shape[1]}, from {place}"


def _show(held: list[dict[str, Any]]) -> None:
    """Turn by turn what a session holds, cut to the terminal's width."""
    import shutil

    from ..session.held import Held
    from .memory import held_lines

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 160
    click.echo("held most strongly when the window began, share of all that was held, and what is in the window:")
    click.echo("\n".join(held_lines([Held(**h) for h in held], width)))


def session_facts(path: Path, model: str | None = None) -> dict[str, Any]:
    """Facts about a session file; everything in it is checked but the match with a model. model: see memory.held_in_file. Raises a SessionError."""
    import numpy as np

    from ..statefile.file import read_session
    from .memory import held_in_file

    record = read_session(path, None)
    turns = held_in_file(path, record, model)
    bank, meta = record.now.bank, record.meta
    written = np.any(bank != 0, axis=(1, 3)).sum(axis=1)
    now = record.now
    if record.version == 1:
        held = {"chunks_committed": now.written, "window_tokens": len(now.tokens)}
    else:
        held = {"tokens_written": now.written + max(0, max(now.folds, default=0) - now.carried), "window_tokens": len(now.tokens)}
        held |= {"window": record.document["window"], "carried": now.carried, "folds": len(now.folds), "written_before_the_window": now.written}
    return {
        "kind": "session", "path": str(path), "file_bytes": path.stat().st_size, "model": meta.model, "fingerprint": meta.fingerprint,
        "tokenizer": meta.tokenizer, "saved_by": meta.backend, "dtype": meta.dtype, "created": meta.created, "updated": meta.updated,
        "tokens_seen": meta.tokens_seen, **held,
        "messages": record.now.notes["turns"], "undo_steps": len(record.snapshots), "seed": meta.seed, "draws": meta.draws,
        "bank_shape": list(bank.shape), "state_bytes": int(bank.nbytes), "rows_not_zero": [int(n) for n in written],
        "held": [asdict(h) for h in turns],
    }  # fmt: skip


def _readable(key: str, value: Any) -> str:
    if key.endswith("bytes"):
        return f"{megabytes(value)} ({value:,} bytes)"
    if key.endswith("parameters"):
        return f"{value / 1e6:.1f} M" if value >= 1e6 else f"{value:,}"
    if isinstance(value, bool):
        return "yes" if value else "no (a starting point for training)"
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items() if not isinstance(v, (dict, list)))
    if isinstance(value, list):
        return ", ".join(str(v) for v in value)
    return str(value)


def _count(shape: tuple[int, ...]) -> int:
    import math

    return math.prod(shape)
