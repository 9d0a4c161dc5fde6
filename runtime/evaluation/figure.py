"""Figures of an evaluation as PNG. The only place that knows matplotlib, which is optional."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...models.atomic import write_file
from ...models.errors import BackendError
from .cells import Result
from .perplexity import Figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure. Raises BackendError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise BackendError("no figure: matplotlib is not installed: pip install matplotlib") from None
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG, atomically. Raises WriteError."""
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=150)
    write_file(path, lambda f: f.write(held.getvalue()))


def heat_map(results: Sequence[Result], title: str, path: Path) -> None:
    """Two maps, names by lengths: right answers in % with the memory and without. Raises BackendError or WriteError."""
    names = list(dict.fromkeys(r.cell.name for r in results))
    columns = list(dict.fromkeys((r.cell.at, r.cell.label) for r in results))
    figure = new_figure(2.6 + 1.7 * len(columns), 1.7 + 0.5 * len(names))
    axes = figure.subplots(1, 2, sharey=True)
    for axis, words, control in ((axes[0], "with memory", False), (axes[1], "memory reset at each chunk", True)):
        values = [[float("nan")] * len(columns) for _ in names]
        for r in results:
            if r.asked:
                right = r.control_right if control else r.right
                values[names.index(r.cell.name)][columns.index((r.cell.at, r.cell.label))] = 100 * right / r.asked
        image = axis.imshow(values, vmin=0, vmax=100, cmap="RdYlGn", aspect="auto")
        axis.set_title(words, fontsize=10)
        axis.set_xticks(range(len(columns)), [label.replace(" ago", "") for _, label in columns], fontsize=9)
        axis.set_yticks(range(len(names)), names, fontsize=9)
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                if value == value:  # a cell that was not measured is NaN and stays empty
                    axis.text(x, y, f"{value:.0f}", ha="center", va="center", fontsize=9)
    figure.suptitle(title, fontsize=11)
    figure.colorbar(image, ax=axes, label="right, %", shrink=0.9)
    save(figure, path)


def curves(found: Sequence[Figures], title: str, path: Path) -> None:
    """Perplexity with memory over that without, chunk by chunk, one line a length. Raises BackendError or WriteError."""
    figure = new_figure(7, 3.6)
    axis = figure.subplots()
    for f in found:
        axis.plot(range(1, len(f.by_chunk) + 1), f.by_chunk, marker="o", markersize=3, label=f.cell.label)
    axis.axhline(1, color="#888888", lw=0.8)
    axis.set_xlabel("chunk")
    axis.set_ylabel("perplexity, memory / reset")
    axis.legend(frameon=False)
    figure.suptitle(title, fontsize=11)
    save(figure, path)
