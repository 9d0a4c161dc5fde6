"""What harm came to, as a table for people and as JSON for programs (docs/evaluation.md). Measures nothing."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .figure import new_figure, save
from .harm import DIVERGENCE_AIM, FIRST_AIM, Row, Share, Side, sides
from .report import envelope

if TYPE_CHECKING:
    from rich.table import Table

    from ..loading import Model

CONTROL = "the same questions in the same windows with a memory that was never written: 0 nats and 100% but for rounding"


def table(rows: Sequence[Row], seed: int) -> "Table":
    """A line each for the divergence, first sentences and whole answers: with the memory, the control, and the aim."""
    from rich.table import Table

    out = Table(title=f"harm: ordinary answers beside the backbone's own, {len(rows)} questions [95% interval]", title_justify="left", pad_edge=False)
    for name in ("", "with a full memory", "never written", "aim"):
        out.add_column(name, justify="right" if name else "left")
    if not rows:
        return out
    memory, never = sides(rows, seed)
    aims = (
        f"<= {DIVERGENCE_AIM} {_met(memory.divergence <= DIVERGENCE_AIM)}",
        f">= {100 * FIRST_AIM:.0f} {_met(memory.first.same >= FIRST_AIM * memory.first.asked)}",
    )
    out.add_row("divergence, nats a token", _nats(memory), _nats(never), aims[0])
    out.add_row("first sentence the same, %", _percent(memory.first), _percent(never.first), aims[1])
    out.add_row("whole answer the same, %", _percent(memory.answer), _percent(never.answer), "")
    return out


def document(model: "Model", rows: Sequence[Row], settings: dict[str, Any], whole: bool) -> dict[str, Any]:
    """The whole report for programs: shares from 0 to 1, divergences in nats a token."""
    cells = [_cell(model, rows, settings["seed"])] if rows else []
    return envelope(model, "harm", settings, whole, cells) | {"control": CONTROL}


def draw(rows: Sequence[Row], title: str, path: Path) -> None:
    """The divergence of every question, in order of size, with the memory and with one never written. Raises BackendError or WriteError."""
    figure = new_figure(7, 3.8)
    axis = figure.subplots()
    for nats, name in (([r.divergence / r.scored for r in rows], "full memory"), ([r.control / r.scored for r in rows], "never written")):
        axis.plot(range(1, len(rows) + 1), sorted(nats, reverse=True), label=name)
    axis.axhline(DIVERGENCE_AIM, color="#888888", lw=0.8, ls="--", label="aim, of the mean")
    axis.set_yscale("symlog", linthresh=1e-4)
    axis.set_ylim(0)
    axis.set_xlabel("questions, by size")
    axis.set_ylabel("KL(backbone || with memory), nats a token")
    axis.legend(frameon=False)
    figure.suptitle(title, fontsize=11)
    save(figure, path)


def so_far(rows: Sequence[Row], seed: int) -> str:
    """A line for people while it goes on."""
    memory, _ = sides(rows, seed)
    return f"{memory.divergence:.4f} nats a token, {100 * memory.first.same / memory.first.asked:.0f}% of first sentences the same"


def _cell(model: "Model", rows: Sequence[Row], seed: int) -> dict[str, Any]:
    memory, never = sides(rows, seed)
    slots = model.config.memory.slots
    return {
        "name": "harm", "at": slots, "label": f"a full memory of {slots:,} rows", "count": len(rows), "talks": len({row.talk for row in rows}),
        "tokens_scored": sum(row.scored for row in rows), **_document(memory), "control": _document(never),
        "aims": {"divergence": DIVERGENCE_AIM, "first_sentence": FIRST_AIM},
        "written_least": min(row.written for row in rows), "hidden_mean": sum(row.hidden for row in rows) / len(rows),
    }  # fmt: skip


def _document(side: Side) -> dict[str, Any]:
    found: dict[str, Any] = {"divergence": side.divergence, "low": side.low, "high": side.high}
    for name, share in (("first_sentence", side.first), ("answer", side.answer)):
        found[name] = {"same": share.same, "share": share.same / share.asked, "low": share.low, "high": share.high}
    return found


def _met(met: bool) -> str:
    return "met" if met else "missed"


def _nats(side: Side) -> str:
    if side.divergence < 5e-5:  # not 0.0000
        return f"{side.divergence:.0e}" if side.divergence else "0"
    interval = "" if side.low is None else f" \\[{side.low:.4f}-{side.high:.4f}]"
    return f"{side.divergence:.4f}{interval}"


def _percent(share: Share) -> str:
    return f"{100 * share.same / share.asked:.1f} \\[{100 * share.low:.0f}-{100 * share.high:.0f}]"
