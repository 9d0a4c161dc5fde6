"""A Look as one PNG: a row of maps for each memory layer, and the text of the rows the answer read. Knows matplotlib through figure.py."""

from pathlib import Path
from typing import Any

import numpy as np

from ..evaluation.figure import new_figure, save
from .look import Look, Read

ROWS_SHOWN = 5
COLUMNS_SHOWN = 16
CARRIED_SHOWN = 100  # characters
TOKENS_SHOWN = 48  # labels on the axis of tokens, at most


def picture(look: Look, path: Path) -> None:
    """Draw `look`. Raises BackendError without matplotlib, WriteError for the file."""
    gates = look.history is not None and bool(look.history.chunks)
    columns = 2 * gates + 1 + (look.answered is not None)
    reads = look.reads(ROWS_SHOWN)
    lines = _words(look, reads)
    layers, rows = len(look.layers), look.rows
    height = 1.2 + 2.9 * layers + 0.155 * len(lines)
    figure = new_figure(max(9.5, 3.6 * columns), height)
    parts: Any = figure.subfigures(2, 1, height_ratios=[1.2 + 2.9 * layers, max(0.3, 0.155 * len(lines))])
    top, bottom = parts
    top.suptitle("\n".join([_plain(look.title), *(_plain(note) for note in look.notes)]), fontsize=9)
    axes = top.subplots(layers, columns, squeeze=False)
    across = f"{look.unit}s read" if look.whole_life else look.across
    for bank, layer in enumerate(look.layers):
        row = iter(axes[bank])
        if gates:
            assert look.history is not None
            for name, words, colors in (("write", "write gate", "Blues"), ("forget", "forget gate", "Greens")):
                values = look.history.gate(name)[bank][:rows]
                _map(top, next(row), values, 0, 1, colors, f"{look.word} {layer}: {words}, mean {np.nanmean(values):.2f}", look.unit, 0.5)
        norms, axis = look.norms[bank][:rows], next(row)
        _map(
            top,
            axis,
            norms,
            0,
            float(norms.max(initial=0)) or 1.0,
            "Oranges",
            f"{look.word} {layer}: size of rows (rms)",
            across,
            -0.5,
        )
        if look.begin is not None:
            axis.axvline(look.begin - 0.5, color="#333333", lw=0.8)
        if look.answered is not None:
            axis, mass = next(row), look.answered.mass[bank].T[:rows]  # (n, t)
            _map(
                top,
                axis,
                mass,
                0,
                float(mass.max(initial=0)) or 1.0,
                "Reds",
                f"{look.word} {layer}: attention",
                "",
                -0.5,
            )
            shown = range(0, mass.shape[1], 1 + mass.shape[1] // TOKENS_SHOWN)
            axis.set_xticks(list(shown), [_plain(look.answered.pieces[t]) for t in shown], rotation=90, fontsize=6)
            axis.axvline(look.answered.begin - 0.5, color="#333333", lw=0.8)
    bottom.text(0.01, 0.98, "\n".join(lines), va="top", ha="left", family="monospace", fontsize=8)
    save(figure, path)


def _map(figure: Any, axis: Any, values: np.ndarray, low: float, high: float, colors: str, title: str, across: str, left: float) -> None:
    """values (n, columns); `left`: where the first column begins on the axis."""
    extent = (left, left + values.shape[1], values.shape[0] - 0.5, -0.5)
    image = axis.imshow(values, aspect="auto", vmin=low, vmax=high, cmap=colors, interpolation="nearest", extent=extent)
    axis.set_facecolor("#e6e6e6")
    axis.set_title(title, fontsize=9)
    axis.set_ylabel("row", fontsize=8)
    axis.set_xlabel(across, fontsize=8)
    axis.tick_params(labelsize=7)
    if across:
        first = int(left + 0.5)
        axis.set_xticks(range(first, first + values.shape[1], 1 + values.shape[1] // COLUMNS_SHOWN))
    figure.colorbar(image, ax=axis, fraction=0.05).ax.tick_params(labelsize=6)


def _words(look: Look, reads: list[list[Read]]) -> list[str]:
    """Question, answers, and for each layer the rows read most with the text that is most of each."""
    if look.answered is None:
        return []
    lines = [
        f"question        {_plain(look.answered.question)}",
        f"answer          {_plain(look.answered.answer)}",
        f"without memory  {_plain(look.answered.without)}",
    ]
    if look.carried:
        text = _plain("".join(look.carried))
        text = text if len(text) <= CARRIED_SHOWN else f"{text[: CARRIED_SHOWN // 2]} ... {text[-CARRIED_SHOWN // 2 :]}"
        lines.append(f"carried over    {len(look.carried)} tokens, in the memory before the window began: {text}")
    lines.append("rows the answer read, and the text there:")
    for layer, found in zip(look.layers, reads, strict=True):
        for read in found:
            where = "earlier"
            if read.holder is not None and read.holder.chunk is not None:
                text = f"{_plain(read.before)}[{_plain(read.token)}]{_plain(read.after)}"
                where = f"{look.unit} {read.holder.chunk + 1:<3} {100 * read.holder.share:3.0f}%  {text}"
            lines.append(f"  {look.word} {layer:<3} row {read.row:<4} {100 * read.mass:5.1f}%  {where}")
    return lines


def _plain(text: str) -> str:
    """One line without control characters, and without the $ that matplotlib takes for a formula."""
    text = text.replace("\n", "\u23ce").replace("$", r"\$")
    return "".join(c if c.isprintable() else "\ufffd" for c in text)
