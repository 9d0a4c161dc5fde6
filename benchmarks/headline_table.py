"""The comparison's table and figure: right answers by task and length with intervals, and what the LM2 paper says beside them. Trains and measures nothing."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lm2.models.tasks.scoring import wilson

NAMES = {"lm2": "LM2", "rmt": "RMT", "none": "Llama"}
# Kang et al., arXiv 2502.06049, table 3: right answers in % of models of 1.7B parameters by length and task, qa1 to qa10.
PAPER = {
    "lm2": {"0k": "99 89 70 88 98 95 96 97 99 94", "1k": "85 59 72 68 91 84 96 69 82 77", "2k": "58 43 64 43 87 73 93 53 75 69",
            "4k": "46 37 48 34 78 66 93 45 62 50", "8k": "34 12 31 26 63 53 95 40 57 49", "16k": "23 17 28 28 39 44 93 38 48 42",
            "32k": "19 13 20 23 31 50 92 35 59 39"},
    "rmt": {"0k": "85 49 49 81 95 84 82 78 85 76", "1k": "35 26 29 33 61 50 83 41 68 53", "2k": "44 21 43 41 79 47 78 41 69 51",
            "4k": "24 20 22 24 28 46 75 35 65 45", "8k": "14 15 25 28 25 47 74 38 65 46", "16k": "23 9 18 23 19 47 75 33 62 42",
            "32k": "12 16 20 18 22 46 74 34 62 43"},
    "none": {"0k": "86 57 46 59 85 83 95 79 83 77", "1k": "31 21 44 43 71 60 71 40 67 58", "2k": "25 22 37 34 58 60 65 38 66 58",
             "4k": "21 18 38 28 55 61 64 35 49 53", "8k": "17 19 26 20 41 51 60 37 42 45", "16k": "10 11 21 11 37 59 61 34 46 46",
             "32k": "10 17 24 13 30 54 71 33 39 53"},
}  # fmt: skip


class Found(NamedTuple):
    """One task at one length: right answers, of how many, and the share of the commonest answer."""

    name: str
    at: int
    label: str
    right: int
    count: int
    floor: float


def merged(runs: Sequence[Sequence[Found]]) -> list[Found]:
    """The cells of several seeds as one: their answers together."""
    out: dict[tuple[str, int], Found] = {}
    for cell in (c for run in runs for c in run):
        have = out.get((cell.name, cell.at))
        out[cell.name, cell.at] = cell if have is None else have._replace(right=have.right + cell.right, count=have.count + cell.count)
    return sorted(out.values(), key=lambda c: (int(c.name[2:]), c.at))


def paper(arm: str, label: str, tasks: Sequence[str]) -> float | None:
    """The paper's mean over tasks at a length, in %; None where it has no such length."""
    row = PAPER[arm].get(label)
    return None if row is None else sum(float(row.split()[int(task[2:]) - 1]) for task in tasks) / len(tasks)


def markdown(title: str, found: Mapping[str, Sequence[Found]], about: Mapping[str, Mapping[str, object]], seeds: Mapping[str, int]) -> str:
    """The table: means by length with Wilson's intervals over all answers beside the paper's, then every task."""
    if not found:
        return f"{title}\n\nNothing was measured yet.\n"
    lines = [title, ""]
    for arm in found:
        a = about[arm]
        lines.append(
            f"* {NAMES[arm]}: {a['parameters']:,} parameters, {a['state_bytes']:,} bytes carried, {a['window']} tokens at a time, "
            f"{seeds[arm]} seed{'s' if seeds[arm] > 1 else ''}, loss at the end {a['loss']:.2f}"
        )
    lines += ["", "| mean | " + " | ".join(_labels(found)) + " |", "|---" * (1 + len(_labels(found))) + "|"]
    for arm, cells in found.items():
        lines.append(f"| {NAMES[arm]} | " + " | ".join(_mean(cells, label) for label in _labels(found)) + " |")
    lines.append("| floor | " + " | ".join(_floor(found, label) for label in _labels(found)) + " |")
    for arm, cells in found.items():
        tasks = sorted({c.name for c in cells}, key=lambda t: int(t[2:]))
        told = [paper(arm, label, tasks) for label in _labels(found)]
        lines.append(f"| {NAMES[arm]}-1.7B, the paper | " + " | ".join("" if x is None else f"{x:.0f}" for x in told) + " |")
    lines += ["", "| task | | " + " | ".join(_labels(found)) + " |", "|---" * (2 + len(_labels(found))) + "|"]
    for task in sorted({c.name for cells in found.values() for c in cells}, key=lambda t: int(t[2:])):
        for arm, cells in found.items():
            lines.append(f"| {task} | {NAMES[arm]} | " + " | ".join(_cell(cells, task, label) for label in _labels(found)) + " |")
    return "\n".join(lines) + "\n"


def _labels(found: Mapping[str, Sequence[Found]]) -> list[str]:
    return [label for _, label in sorted({(c.at, c.label) for cells in found.values() for c in cells})]


def _mean(cells: Sequence[Found], label: str) -> str:
    here = [c for c in cells if c.label == label and c.count]
    return _figure(sum(c.right for c in here), sum(c.count for c in here), f" of {sum(c.count for c in here)}") if here else ""


def _floor(found: Mapping[str, Sequence[Found]], label: str) -> str:
    here = [c.floor for c in next(iter(found.values())) if c.label == label]
    return f"{100 * sum(here) / len(here):.0f}" if here else ""


def _cell(cells: Sequence[Found], task: str, label: str) -> str:
    return next((_figure(c.right, c.count) for c in cells if (c.name, c.label) == (task, label)), "")


def _figure(right: int, count: int, more: str = "") -> str:
    low, high = wilson(right, count)
    return f"{100 * right / count:.0f} [{100 * low:.0f}-{100 * high:.0f}]{more}"


def draw(found: Mapping[str, Sequence[Found]], path: Path) -> None:
    """A panel for each task and one for the mean: right answers by length with intervals, the floor as a line, the paper's as dots."""
    from matplotlib.figure import Figure

    tasks = sorted({c.name for cells in found.values() for c in cells}, key=lambda t: int(t[2:]))
    labels = _labels(found)
    columns = 3
    figure = Figure(figsize=(4 * columns, 3 * -(-(len(tasks) + 1) // columns)), layout="constrained")
    for number, task in enumerate(["mean", *tasks], 1):
        axes = figure.add_subplot(-(-(len(tasks) + 1) // columns), columns, number)
        for (arm, cells), color in zip(found.items(), ("C0", "C1", "C2"), strict=False):
            points = []
            for i, label in enumerate(labels):
                here = [c for c in cells if c.label == label and (task == "mean" or c.name == task)]
                if here:
                    right, count = sum(c.right for c in here), sum(c.count for c in here)
                    points.append((i, 100 * right / count, *(100 * edge for edge in wilson(right, count))))
            axes.plot([p[0] for p in points], [p[1] for p in points], color=color, marker="o", markersize=3, label=NAMES[arm])
            axes.fill_between([p[0] for p in points], [p[2] for p in points], [p[3] for p in points], color=color, alpha=0.15)
            told = [(i, value) for i, label in enumerate(labels) if (value := paper(arm, label, tasks if task == "mean" else [task])) is not None]
            axes.plot([i for i, _ in told], [v for _, v in told], color=color, linestyle=":", linewidth=1)
        floors = [c.floor for c in next(iter(found.values())) if task in ("mean", c.name)]
        axes.axhline(100 * sum(floors) / len(floors), color="grey", linewidth=0.8)
        axes.set_title(task, fontsize=9)
        axes.set_xticks(range(len(labels)), labels, fontsize=7)
        axes.set_ylim(0, 102)
    figure.axes[0].legend(fontsize=7, title="dotted: the paper, 1.7B; grey: floor", title_fontsize=6)
    figure.savefig(path, dpi=110)
