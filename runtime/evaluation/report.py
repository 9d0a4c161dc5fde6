"""A finished evaluation as a table for people and as JSON for programs (docs/evaluation.md). Measures nothing."""

import math
import platform
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ... import __version__
from ...models.tasks.scoring import wilson
from .cells import Result
from .perplexity import Figures

if TYPE_CHECKING:
    from rich.table import Table

    from ..loading import Model

FORMAT, VERSION = "lm2-eval", 1
CONTROL = "the memory is reset to the never-written one at each chunk border"


class Mean(NamedTuple):
    """The mean over several names at one length or distance, each name weighing the same."""

    names: tuple[str, ...]
    at: int
    label: str
    accuracy: float
    control: float
    floor: float


def means(results: Sequence[Result]) -> list[Mean]:
    """Over all names that have samples at a length; none where there is only one name."""
    out = []
    for at in dict.fromkeys(r.cell.at for r in results):
        here = _at(results, at)
        if len(here) < 2:
            continue
        floors = [r.floor.share for r in here if r.floor]
        accuracy, control = (sum(right / r.asked for right, r in zip(found, here, strict=True)) / len(here) for found in _rights(here))
        out.append(Mean(tuple(r.cell.name for r in here), at, here[0].cell.label, accuracy, control, sum(floors) / len(floors)))
    return out


def _at(results: Sequence[Result], at: int) -> list[Result]:
    return [r for r in results if r.cell.at == at and r.asked]


def header(model: "Model", facts: dict[str, Any]) -> list[str]:
    """What was measured on what, line by line. facts: words by name, in order."""
    about = model.backend.describe()
    packed = "" if about.quantization == "none" else f", {about.quantization}"
    lines = [
        ("model", f"{model.name}, fingerprint {model.fingerprint[:16]}, chunks of {model.config.memory.chunk}"),
        ("backend", f"{about.backend} {', '.join(about.versions.values())} on {about.device}, {about.dtype}{packed}"),
        *((name, str(value)) for name, value in facts.items()),
        ("control", CONTROL),
    ]
    return [f"{name:<10} {text}" for name, text in lines]


def table(task: str, results: Sequence[Result]) -> "Table":
    """One line a cell, then the means."""
    from rich.markup import escape
    from rich.table import Table

    out = Table(title=f"{task}: right answers in % [95% interval]", title_justify="left", pad_edge=False)
    out.add_column("")
    out.add_column("")
    published = task == "babilong"
    for name in ("with memory", *(("BABILong's scoring",) if published else ()), "without", "floor", "samples"):
        out.add_column(name, justify="right")
    last = ""
    for r in results:
        if last and r.cell.name != last:
            out.add_section()
        floor = f"{100 * r.floor.share:.1f} ({escape(r.floor.answer)})" if r.floor else ""
        with_, without = (_figure(n, r.asked) for n in (r.right, r.control_right))
        theirs = (f"{100 * r.published / r.asked:.1f}" if r.asked else "",) if published else ()
        name = r.cell.name if r.cell.name != last else ""
        out.add_row(name, r.cell.label, with_, *theirs, without, floor, f"{r.asked}{'' if r.whole else ' so far'}")
        last = r.cell.name
    combined = means(results)
    if combined:
        out.add_section()
    for i, m in enumerate(combined):
        theirs = (f"{100 * sum(r.published / r.asked for r in here) / len(here):.1f}",) if published and (here := _at(results, m.at)) else ()
        out.add_row("mean" if i == 0 else "", m.label, f"{100 * m.accuracy:.1f}", *theirs, f"{100 * m.control:.1f}", f"{100 * m.floor:.1f}", "")
    return out


def document(model: "Model", task: str, results: Sequence[Result], settings: dict[str, Any], whole: bool) -> dict[str, Any]:
    """The whole report for programs: shares from 0 to 1."""
    whole = whole and all(r.whole for r in results)
    return envelope(model, task, settings, whole, [_cell(r, task == "babilong") for r in results]) | {
        "means": [m._asdict() | {"names": list(m.names)} for m in means(results)]
    }


def envelope(model: "Model", task: str, settings: dict[str, Any], whole: bool, cells: list[dict[str, Any]]) -> dict[str, Any]:
    """What every report has around its cells."""
    about = model.backend.describe()
    return {
        "format": FORMAT,
        "version": VERSION,
        "task": task,
        "whole": whole,
        "model": {"name": model.name, "fingerprint": model.fingerprint, "chunk": model.config.memory.chunk, "slots": model.config.memory.slots},
        "backend": {
            "name": about.backend, "device": about.device, "dtype": about.dtype, "quantization": about.quantization, "versions": about.versions,
        },
        "settings": settings,
        "control": CONTROL,
        "cells": cells,
        "made_by": {"lm2": __version__, "numpy": np.__version__, "python": platform.python_version(), "system": platform.system(), "machine": platform.machine()},
    }  # fmt: skip


def _cell(r: Result, published: bool) -> dict[str, Any]:
    kinds: dict[str, dict[str, int]] = {}
    for o in r.outcomes:
        kind = kinds.setdefault(o.kind, {"count": 0, "right": 0, "control_right": 0})
        kind["count"] += 1
        kind["right"] += o.right
        kind["control_right"] += o.control_right
    n = max(1, r.asked)
    return {
        "name": r.cell.name, "at": r.cell.at, "label": r.cell.label, "count": r.asked, "whole": r.whole,
        **_share(r.right, r.asked), **({"published": _share(r.published, r.asked)} if published else {}), "control": _share(r.control_right, r.asked), "floor": r.floor._asdict() if r.floor else None,
        "kinds": kinds,
        "chunks_mean": sum(o.chunks for o in r.outcomes) / n, "tokens_mean": sum(o.tokens for o in r.outcomes) / n,
        "distance_mean": sum(o.distance for o in r.outcomes) / n,
    }  # fmt: skip


def _rights(results: Sequence[Result]) -> tuple[list[int], list[int]]:
    return [r.right for r in results], [r.control_right for r in results]


def _share(right: int, count: int) -> dict[str, Any]:
    low, high = wilson(right, count)
    return {"right": right, "accuracy": right / count if count else None, "low": low, "high": high}


def _figure(right: int, count: int) -> str:
    if not count:
        return ""
    low, high = (100 * end for end in wilson(right, count))
    share = 100 * right / count
    # Rounded to whole per cents an interval of many samples would leave its estimate out: 99.8 [100-100].
    return f"{share:.1f} \\[{min(round(low), math.floor(share))}-{max(round(high), math.ceil(share))}]"


def perplexity_table(found: Sequence[Figures]) -> "Table":
    """One line a length."""
    from rich.table import Table

    out = Table(title="perplexity, first chunk left out [95% interval]", title_justify="left", pad_edge=False)
    out.add_column("")
    for name in ("with memory", "without", "ratio", "texts"):
        out.add_column(name, justify="right")
    for f in found:
        interval = "" if f.low is None else f" \\[{f.low:.4f}-{f.high:.4f}]"
        out.add_row(
            f.cell.label, f"{f.memory:.3f}", f"{f.reset:.3f}", f"{f.ratio:.4f}{interval}", f"{len(f.texts)}{'' if f.whole else ' so far'}"
        )
    return out


def perplexity_cell(f: Figures) -> dict[str, Any]:
    """A length's figures for programs."""
    return {
        "name": f.cell.name, "at": f.cell.at, "label": f.cell.label, "count": len(f.texts), "whole": f.whole, "perplexity": f.memory,
        "control": {"perplexity": f.reset}, "ratio": f.ratio, "low": f.low, "high": f.high, "ratio_by_chunk": list(f.by_chunk),
        "tokens_scored": sum(row.tokens * (len(row.memory) - 1) for row in f.texts),
    }  # fmt: skip
