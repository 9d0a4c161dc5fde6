"""A finished comparison as a table for people and as JSON for programs (docs/parity.md has the schema). Measures nothing."""

import math
import platform
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import __version__
from ..backend import Description
from .explain import Difference, Explanation
from .gates import Check
from .inputs import SIZES
from .run import Pair, Settings
from .sessions import Agreement
from .sides import Side
from .window import Windowed

if TYPE_CHECKING:
    from rich.table import Table

FORMAT, VERSION = "lm2-parity", 2
_VERDICT = {True: "PASS", False: "FAIL", None: ""}
_STYLE = {True: "green", False: "bold red", None: "dim"}


def verdict(pairs: list[Pair]) -> str:
    """The last line."""
    checks = [check for pair in pairs for check in pair.checks if check.passed is not None]
    failed = [check for check in checks if not check.passed]
    return f"FAIL: {len(failed)} of {len(checks)} gates" if failed else f"PASS: {len(checks)} of {len(checks)} gates"


def header(reference: Side, pairs: list[Pair], settings: Settings) -> list[str]:
    """What was compared and on what input, line by line."""
    forced = pairs[0].forced
    counts = {kind: sum(n for n, k in zip(forced.lengths, forced.kinds, strict=True) if k == kind) for kind in dict.fromkeys(forced.kinds)}
    names = {"text": "of a conversation written for this test", "random": "drawn evenly from the vocabulary"}
    tokens = " and ".join(f"{n} {names[kind]}" for kind, n in counts.items())
    return [
        f"model      {reference.model.name}, fingerprint {reference.model.fingerprint[:16]}",
        f"reference  {side_words(reference.label, pairs[0].reference)}",
        *(f"compared   {side_words(pair.label, pair.candidate)}" for pair in pairs),
        f"input      seed {settings.seed}; {tokens} tokens in {len(forced.lengths)} chunks, {forced.calls} calls of {min(SIZES)} to {max(SIZES)}",
    ]


def side_words(label: str, d: Description) -> str:
    """One backend in words."""
    packed = "" if d.quantization == "none" else f", {d.quantization}"
    return f"{label}: {d.backend} {', '.join(d.versions.values())} on {d.device}, {d.dtype}{packed}"


def table(reference: Side, pair: Pair) -> "Table":
    """One pair, one line per figure."""
    from rich.markup import escape
    from rich.table import Table

    out = Table(title=escape(f"{pair.label} against {reference.label} (gates: {pair.precision})"), title_justify="left", pad_edge=False)
    for name in ("", "figure"):
        out.add_column(name)
    for name in ("measured", "gate"):
        out.add_column(name, justify="right")
    for _ in ("verdict", "note"):
        out.add_column("")
    section = ""
    for check in pair.checks:
        if section and check.section != section:
            out.add_section()
        passed = check.passed
        gate = "" if check.gate is None else f"{check.relation} {figure(check.gate, check.unit)}"
        out.add_row(
            check.section if check.section != section else "", escape(check.name), figure(check.value, check.unit), gate,
            f"[{_STYLE[passed]}]{_VERDICT[passed]}[/]", f"[dim]{escape(check.note)}[/]",
        )  # fmt: skip
        section = check.section
    return out


def figure(value: float, unit: str) -> str:
    """A number for people."""
    if unit == "n" and math.isfinite(value):
        return f"{value:.0f}"
    if unit == "%" and math.isfinite(value):
        return f"{100 * value:.2f}%"
    return f"{value:.2g}" if value == 0 or not 1e-3 <= abs(value) < 1e4 else f"{value:.4g}"


def explanation_lines(label: str, explanation: Explanation) -> list[str]:
    """The sentence, and the tensors around the first disagreement."""
    lines = [f"{label}: {explanation.sentence}"]
    if not explanation.traced:
        lines.append("  (one of the backends cannot tell what its layers computed: logits and banks only)")
    if explanation.first is not None:
        at = explanation.tensors.index(explanation.first)
        for d in explanation.tensors[max(0, at - 3) : at + 4]:
            mark = ">" if d is explanation.first else " "
            lines.append(f"  {mark} {d.place:<8} {d.name:<28} relative L2 {d.relative_l2:9.2g}   largest {d.max_abs:9.2g}")
    return lines


def document(reference: Side, pairs: list[Pair], settings: Settings) -> dict[str, Any]:
    """The whole report for programs. Numbers that are not finite are null: JSON has no word for them."""
    config, forced = reference.model.config, pairs[0].forced
    return {
        "format": FORMAT,
        "version": VERSION,
        "passed": all(pair.passed for pair in pairs),
        "model": {
            "name": reference.model.name, "fingerprint": reference.model.fingerprint, "cell": config.memory.cell,
            "layers": config.num_hidden_layers, "memory_layers": list(config.memory.layers), "slots": config.memory.slots,
            "chunk": config.memory.chunk,
        },
        "input": {
            "seed": settings.seed, "chunks": settings.chunks, "drift": settings.drift, "greedy": settings.greedy,
            "lengths": forced.lengths, "kinds": forced.kinds, "calls": forced.calls,
        },
        "reference": {"label": reference.label, **_side(pairs[0].reference)},
        "pairs": [_pair(pair) for pair in pairs],
        "made_by": {"lm2": __version__, "numpy": np.__version__, "python": platform.python_version(), "system": platform.system(), "machine": platform.machine()},
    }  # fmt: skip


def _pair(pair: Pair) -> dict[str, Any]:
    held = pair.conversation
    return {
        "candidate": {"label": pair.label, **_side(pair.candidate)},
        "gates": pair.precision,
        "passed": pair.passed,
        "checks": [_check(check) for check in pair.checks],
        "logits": {kind: _finite(stats.figures()) for kind, stats in {"all": pair.forced.all_logits, **pair.forced.logits}.items()},
        "banks": [[_number(v) for v in banks] for banks in pair.forced.banks],
        "own_banks": [[_number(v) for v in banks] for banks in pair.forced.carried],
        "own_logits": _finite(pair.forced.own.figures()),
        "greedy": None if pair.greedy is None else _agreement(pair.greedy),
        "window": None if pair.forced.window is None else _window(pair.forced.window),
        "conversation": None if held is None else {
            "window": held.window, "folds": held.folds, "slides": held.slides, "bank": None if held.bank is None else [_number(v) for v in held.bank],
        },
        "sessions": [
            {
                "from": h.source, "to": h.target, "written": h.written, "position": h.position, "carried": h.carried, "folds": h.folds,
                "changed": h.changed, "bank": None if h.bank is None else [_number(v) for v in h.bank],
                "greedy": _agreement(h.agreement),
            }
            for h in pair.handovers
        ],
        "explanation": None if pair.explanation is None else _explanation(pair.explanation),
    }  # fmt: skip


def _window(w: Windowed) -> dict[str, Any]:
    given = w.script
    return {
        "tokens": len(given.tokens), "kind": given.kind, "carried": given.carried, "folds": list(given.folds), "calls": len(given.calls),
        "logits": _finite(w.logits.figures()), "banks": [[_number(v) for v in banks] for banks in w.banks],
    }  # fmt: skip


def _check(check: Check) -> dict[str, Any]:
    return {
        "section": check.section, "name": check.name, "value": _number(check.value), "relation": None if check.gate is None else check.relation,
        "gate": check.gate, "passed": check.passed, "note": check.note,
    }  # fmt: skip


def _side(d: Description) -> dict[str, Any]:
    return {"backend": d.backend, "device": d.device, "dtype": d.dtype, "quantization": d.quantization, "versions": d.versions}


def _agreement(a: Agreement) -> dict[str, Any]:
    first = None if a.whole else {"answer": a.turn, "token": a.index, "gap": None if a.gap is None else _number(a.gap)}
    return {"tokens": a.tokens, "agreed": a.agreed, "first_difference": first}


def _explanation(e: Explanation) -> dict[str, Any]:
    return {
        "gate": e.gate,
        "traced": e.traced,
        "sentence": e.sentence,
        "first": None if e.first is None else _difference(e.first),
        "tensors": [_difference(d) for d in e.tensors],
    }


def _difference(d: Difference) -> dict[str, Any]:
    return {
        "chunk": d.chunk, "name": d.name, "relative_l2": _number(d.relative_l2), "max_abs": _number(d.max_abs), "position": d.at,
        "agrees": d.agrees,
    }  # fmt: skip


def _finite(d: dict[str, float | int]) -> dict[str, float | int | None]:
    return {key: _number(value) for key, value in d.items()}


def _number(value: float) -> float | int | None:
    return value if math.isfinite(value) else None
