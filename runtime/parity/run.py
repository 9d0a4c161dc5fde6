"""One comparison from beginning to end: feed, converse, judge. Knows which figures are judged; how they are printed is report.py's business."""

from collections.abc import Callable
from dataclasses import dataclass

from ..backend import Description
from .explain import Explanation, explain
from .forced import Forced, run
from .gates import GATES, Check, Gates, precision
from .inputs import Inputs
from .measures import CLEAR_GAP, LogitStats
from .sessions import Agreement, Conversation, Handover, converse
from .sides import Side


@dataclass(frozen=True)
class Settings:
    """tokens: of a whole chunk, 0 for the model's. drift: chunks in all whose banks are compared. greedy: tokens, 0 leaves sessions out."""

    chunks: int = 4
    tokens: int = 0
    seed: int = 0
    drift: int = 0
    greedy: int = 200
    explain: bool = False


@dataclass
class Pair:
    """Everything measured between the reference and one other backend."""

    reference: Description
    candidate: Description
    label: str
    precision: str
    forced: Forced
    checks: list[Check]
    conversation: Conversation | None = None
    explanation: Explanation | None = None

    @property
    def greedy(self) -> Agreement | None:
        return None if self.conversation is None else self.conversation.agreement

    @property
    def handovers(self) -> list[Handover]:
        return [] if self.conversation is None else self.conversation.handovers

    @property
    def passed(self) -> bool:
        return all(check.passed is not False for check in self.checks)


def compare(reference: Side, other: Side, settings: Settings, say: Callable[[str], None] = lambda text: None) -> Pair:
    """Measure `other` against `reference`. `say` hears of progress. Raises PromptError when the tokenizer is not the model's."""
    a, b = reference.model.backend, other.model.backend
    inputs = make_inputs(reference, settings)
    kind = precision(a.describe(), b.describe())
    gates = GATES[kind]
    forced = run(a, b, inputs, settings.chunks, settings.drift, say)
    checks = [*logit_checks(forced, gates), *bank_checks(forced, gates), *window_checks(forced, gates)]
    pair = Pair(a.describe(), b.describe(), other.label, kind, forced, checks)
    if settings.greedy:
        say("greedy conversation")
        pair.conversation = converse(reference, other, inputs, settings.greedy)
        checks += session_checks(reference, pair.conversation, gates)
    if settings.explain:
        say("layer by layer")
        pair.explanation = explain(a, b, inputs, settings.chunks, gates.tensor)
    return pair


def make_inputs(reference: Side, settings: Settings) -> Inputs:
    """The tokens of a run."""
    return Inputs(reference.model, settings.tokens or reference.model.config.memory.chunk, settings.seed)


def logit_checks(forced: Forced, gates: Gates) -> list[Check]:
    """Over every position; for quantised backends top-1 and KL over text alone where there is text, since drawn ids are no language."""
    stats = forced.all_logits
    chunk, position = forced.worst
    where = f"chunk {chunk + 1}, position {position}" if chunk >= 0 else ""
    quantised = gates.kl is not None
    judged: LogitStats = forced.logits.get("text", stats) if quantised else stats
    over = f"{judged.positions} positions" + (" of text" if quantised and "text" in forced.logits else "")
    return [
        Check("logits", "largest difference", stats.largest, gates.logits_max, note=where),
        Check("logits", "mean difference", stats.mean),
        Check("logits", "99% of differences within", stats.p99),
        Check("logits", "relative L2", stats.relative_l2, gates.logits_l2),
        Check("logits", "same likeliest token", judged.top1, gates.top1, ">=", "%", over),
        Check(
            "logits",
            f"same, where the gap exceeds {CLEAR_GAP:g}",
            judged.top1_clear,
            gates.top1_clear,
            ">=",
            "%",
            f"{judged.clear} positions",
        ),
        Check("logits", "mean KL divergence", judged.kl, gates.kl, note="nats"),
    ]


def bank_checks(forced: Forced, gates: Gates) -> list[Check]:
    """The worst bank of any layer with each side carrying its own, as in use, and after each chunk from the same bank, which says where it went wrong."""
    if not any(forced.banks):
        return []
    drifting = len(forced.carried) > len(forced.banks)
    checks = [
        Check("memory", f"bank NMSE after chunk {c + 1}", max_of(banks), gates.bank, note=f"{forced.lengths[c]} tokens, {forced.kinds[c]}")
        for c, banks in enumerate(forced.carried[: len(forced.banks)])
    ]
    if drifting:
        worst = max_of([value for banks in forced.carried for value in banks])
        note = f"{max_of(forced.carried[0]):.2g} after chunk 1, {max_of(forced.carried[-1]):.2g} at the end"
        checks.append(Check("memory", f"largest bank NMSE over {len(forced.carried)} chunks", worst, gates.bank, note=note))
    over = f"{forced.own.positions} positions"
    checks += [
        Check("memory", "logits with carried banks: largest difference", forced.own.largest, gates.logits_max, note=over),
        Check("memory", "logits with carried banks: relative L2", forced.own.relative_l2, gates.logits_l2),
    ]
    worst = max_of([value for banks in forced.banks for value in banks])
    checks.append(Check("one chunk", "largest bank NMSE from the same bank", worst, gates.bank, note=", ".join(f"{max_of(b):.2g}" for b in forced.banks)))
    return checks


def window_checks(forced: Forced, gates: Gates) -> list[Check]:
    """One window with folds and carried tokens, both sides from the reference's bank. Too few positions to judge a share of likeliest tokens."""
    if forced.window is None:
        return []
    given, stats = forced.window.script, forced.window.logits
    what = f"{len(given.tokens)} tokens, {given.carried} carried over, folded at {', '.join(map(str, given.folds))}"
    worst = max_of([value for banks in forced.window.banks for value in banks])
    each = ", ".join(f"{max_of(banks):.2g}" for banks in forced.window.banks)
    return [
        Check("window", "logits: largest difference", stats.largest, gates.logits_max, note=f"position {stats.worst}; {what}"),
        Check("window", "logits: relative L2", stats.relative_l2, gates.logits_l2),
        Check("window", "same likeliest token", stats.top1, unit="%", note=f"{stats.positions} positions"),
        Check("window", f"same, where the gap exceeds {CLEAR_GAP:g}", stats.top1_clear, gates.top1_clear, ">=", "%", f"{stats.clear} positions"),
        Check("window", "mean KL divergence", stats.kl, gates.kl, note="nats"),
        Check("window", "largest bank NMSE after a fold", worst, gates.bank, note=each),
    ]


def max_of(values: list[float]) -> float:
    """The largest, NaN if there is one, 0 of nothing."""
    return next((v for v in values if v != v), max(values, default=0.0))


def session_checks(reference: Side, held: Conversation, gates: Gates) -> list[Check]:
    """The same greedy conversation on both, in a window that folded and slid, and the session file carried both ways."""
    folding = reference.model.config.memory.cell == "gated"
    name, count = ("slides", held.slides) if folding else ("chunks committed", held.folds)
    note = f"{held.folds} folds" if folding else ""
    checks = [
        Check("sessions", f"{name}, in a window of {held.window} tokens", count, 1, ">=", "n", note),
        _greedy_check("sessions", f"greedy tokens as on {reference.label}", held.agreement, gates),
    ]
    if held.bank is not None:
        checks.append(Check("sessions", "bank NMSE in the end", max_of(held.bank), gates.bank))
    for h in held.handovers:
        way = f"{h.source} to {h.target}"
        where = f"saved with {h.written} tokens in the memory, position {h.position} of the window ({h.carried} carried over, {h.folds} folds)"
        if h.refused:
            where = f"not opened: {h.refused}"
        checks.append(Check("sessions", f"{way}: numbers of the bank changed", h.changed, 0, unit="n", note=where))
        checks.append(_greedy_check("sessions", f"{way}: greedy tokens as if it had stayed", h.agreement, gates))
        if h.bank is not None:
            checks.append(Check("sessions", f"{way}: bank NMSE in the end", max_of(h.bank), gates.bank))
    return checks


def _greedy_check(section: str, name: str, found: Agreement, gates: Gates) -> Check:
    """All tokens must be the same, unless the first that differs was a tie: then the rest cannot be compared and is not judged."""
    note = f"of {found.tokens}"
    gate = found.tokens if gates.greedy and found.tokens else None
    if not found.tokens:
        note = "no answer had a token: nothing to compare"
    elif not found.whole:
        gap = "unknown" if found.gap is None else f"{found.gap:.2g}"
        note += f"; first difference in answer {found.turn + 1}, token {found.index + 1}, where the two likeliest are {gap} apart"
        if gates.greedy and found.gap is not None and found.gap <= CLEAR_GAP:
            gate = found.agreed
            note += " (a tie)"
    return Check(section, name, found.agreed, gate, ">=", "n", note)
