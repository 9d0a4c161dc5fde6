"""What natural recall came to, as a table for people and as JSON for programs (docs/evaluation.md). Measures nothing."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...models.tasks.scoring import wilson
from .figure import new_figure, save
from .natural import ARMS, Row
from .report import envelope

if TYPE_CHECKING:
    from rich.table import Table

    from ..loading import Model

HEADS = ("with its memory", "another's memory", "memory off", "all in the window")


def label(at: int) -> str:
    """A distance for people."""
    return "at once" if at == 0 else f"{at:,} tokens out of sight"


def shares(rows: Sequence[Row], at: int) -> list[tuple[int, int] | None]:
    """(right, asked) of each arm at a distance; None where an arm was asked nothing."""
    here = [row for row in rows if row.at == at]
    out: list[tuple[int, int] | None] = []
    for arm in range(len(ARMS)):
        judged = [bool(row.right[arm]) for row in here if row.right[arm] is not None]
        out.append((sum(judged), len(judged)) if judged else None)
    return out


def table(rows: Sequence[Row], distances: Sequence[int]) -> "Table":
    """One line a distance, a column an arm."""
    from rich.table import Table

    out = Table(title="recall, natural: right answers in % [95% interval]", title_justify="left", pad_edge=False)
    for name in ("", *HEADS, "questions"):
        out.add_column(name, justify="right" if name else "left")
    for at in distances:
        found = shares(rows, at)
        cells = ["" if f is None else _figure(*f) for f in found]
        out.add_row(label(at), *cells, str(found[0][1] if found[0] else 0))
    return out


def document(model: "Model", rows: Sequence[Row], distances: Sequence[int], settings: dict[str, Any], whole: bool) -> dict[str, Any]:
    """The whole report for programs: shares from 0 to 1."""
    return envelope(model, "recall", settings, whole, [_cell(rows, at) for at in distances])


def draw(rows: Sequence[Row], distances: Sequence[int], title: str, path: Path) -> None:
    """The arms over the distances. Raises BackendError or WriteError."""
    figure = new_figure(7, 3.8)
    axis = figure.subplots()
    for arm, name in enumerate(HEADS):
        points = [(i, 100 * f[0] / f[1]) for i, at in enumerate(distances) if (f := shares(rows, at)[arm]) is not None]
        axis.plot([x for x, _ in points], [y for _, y in points], marker="o", markersize=4, label=name)
    axis.set_xticks(range(len(distances)), ["at once" if at == 0 else f"{at:,}" for at in distances])
    axis.set_xlabel("tokens since the fact was last word for word in the window")
    axis.set_ylabel("right, %")
    axis.set_ylim(0, 100)
    axis.legend(frameon=False)
    figure.suptitle(title, fontsize=11)
    save(figure, path)


def _cell(rows: Sequence[Row], at: int) -> dict[str, Any]:
    here = [row for row in rows if row.at == at]
    arms = dict(zip(ARMS, map(_share, shares(rows, at)), strict=True))
    sources: dict[str, dict[str, int]] = {}
    for row in here:
        source = sources.setdefault(row.source, {"count": 0, "right": 0})
        source["count"] += 1
        source["right"] += bool(row.right[0])
    mean = sum(row.distance for row in here) / max(1, len(here))
    return {"name": "natural", "at": at, "label": label(at), "count": len(here), "arms": arms, "sources": sources, "distance_mean": mean}


def _share(found: tuple[int, int] | None) -> dict[str, Any] | None:
    if found is None:
        return None
    right, asked = found
    low, high = wilson(right, asked)
    return {"right": right, "count": asked, "accuracy": right / asked, "low": low, "high": high}


def _figure(right: int, asked: int) -> str:
    low, high = (100 * x for x in wilson(right, asked))
    return f"{100 * right / asked:.1f} [{low:.0f}-{high:.0f}]"
