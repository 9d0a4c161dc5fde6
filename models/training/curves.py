"""Training curves: a CSV that grows with the run and a PNG drawn from it. Knows numbers, not what they mean."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..atomic import write_file
from .plan import TrainError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TABLE, PICTURE = "curves.csv", "curves.png"


class Curves:
    """Rows of a run in `folder`. What an earlier process wrote up to step `begin` is kept, later rows are dropped.

    Raises TrainError when its table cannot be read.
    """

    def __init__(self, folder: Path, begin: int):
        self._file = folder / TABLE
        self._picture = folder / PICTURE
        self._rows: list[dict[str, str]] = []
        if begin and self._file.is_file():
            try:
                with open(self._file, encoding="utf-8", newline="") as f:
                    self._rows = [row for row in csv.DictReader(f) if (row.get("step") or "").isdecimal() and int(row["step"]) <= begin]
            except (OSError, UnicodeDecodeError, csv.Error) as error:
                raise TrainError(f"cannot read {self._file} ({error}): remove it, the run goes on without its earlier rows") from None

    def add(self, step: int, figures: Mapping[str, float], shares: Mapping[str, float]) -> None:
        """One row: the step, figures, and the share of right answers by kind (columns `right KIND`)."""
        row = {"step": str(step)} | {k: f"{v:.6g}" for k, v in figures.items()} | {f"right {k}": f"{v:.4f}" for k, v in shares.items()}
        self._rows.append(row)
        columns = list(dict.fromkeys(name for r in self._rows for name in r))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        write_file(self._file, lambda f: f.write(text.getvalue().encode()))

    def draw(self) -> None:
        """Write the PNG: loss above, shares of right answers below. Does nothing without matplotlib or without rows."""
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError:
            return
        if not self._rows:
            return
        figure = Figure(figsize=(8, 7), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True)
        self._line(above, "loss", "loss")
        above.set_ylabel("loss of the answers (nats per token)")
        kinds = sorted({name for row in self._rows for name in row if name.startswith("right ")})
        for name in kinds:
            self._line(below, name, name.removeprefix("right "))
        below.set_ylabel("right answers while training")
        below.set_xlabel("step")
        below.set_ylim(0, 1)
        if kinds:
            below.legend(fontsize=8, ncols=4)
        image = io.BytesIO()
        FigureCanvasAgg(figure).print_png(image)
        write_file(self._picture, lambda f: f.write(image.getvalue()))

    def _line(self, axes: "Axes", column: str, label: str) -> None:
        points = [(int(r["step"]), float(r[column])) for r in self._rows if r.get(column)]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, linewidth=1)
