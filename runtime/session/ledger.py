"""Which turn's tokens the rows of a memory hold, row by row, and how strongly. Arrays and numbers: knows no model, no text, no file.

A bank is a ring: token number i writes row i mod n over what was there, new = write * content + forget * old. So an older token may outlive younger
ones whose write gates were shut. Whose a row is can be told from the bank alone, before and after a fold: what is left of the old row is the part of
the new one along it, the rest is the token's. Axes: l banks, n rows, c rows of one fold, d width.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

HEAD = 0  # the turn of what every window begins with (the system prompt)
UNKNOWN = -1  # of what was written before turns were noted
NONE = -1  # in place of a token's number and id, where a row was never written
RESIDUE = 0.1  # a turn's share of a row that another one holds, from which on forgetting the turn takes the row

ENTRY = np.dtype(
    [("number", "<i8"), ("token", "<i4"), ("turn", "<i4"), ("strength", "<f4"), ("second", "<i4"), ("rest", "<f4")]
)  # packed: 28 bytes
Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class Ledger:
    """rows (n,) of ENTRY, read-only: the token a row is most of (its number in the conversation, its id, its turn) and the size of its part; the turn
    that has most of the remainder, and the size of that. Sizes are root mean squares, mean over the banks, as far as a reader hears them. A change
    makes a new ledger: old ones may be kept.
    """

    rows: np.ndarray

    def __post_init__(self) -> None:
        self.rows.flags.writeable = False

    @classmethod
    def empty(cls, n: int) -> "Ledger":
        """Of a memory that was never written."""
        rows = np.zeros(n, ENTRY)  # (n,)
        rows["number"] = rows["token"] = NONE
        return cls(rows)

    @classmethod
    def unknown(cls, bank: np.ndarray, eps: float) -> "Ledger":
        """Of a bank (l, n, d) that nothing was noted of: every row that can be heard belongs to nobody known."""
        ledger = cls.empty(bank.shape[1])
        size = heard(bank, eps)
        rows = ledger.rows.copy()
        rows["turn"] = np.where(size > 0, UNKNOWN, HEAD)
        rows["strength"] = size
        return cls(rows)

    def folded(
        self, first: int, tokens: Sequence[int], turns: np.ndarray, before: np.ndarray, after: np.ndarray, eps: float
    ) -> "Ledger":
        """The ledger after a fold of c tokens, the first of them number `first`. turns (c,); before, after: their rows of the bank, (l, c, d).

        The owner's part shrinks as the row's old part does, and the token takes the row over once its own is as large.
        """
        number = first + np.arange(len(tokens))  # (c,)
        places = number % len(self.rows)
        old = self.rows[places]
        total = heard(before, eps)  # (c,)
        kept = kept_share(before, after, eps)  # (c,)
        inherited = np.divide(kept, total, out=np.zeros_like(total), where=total > 0)
        owner, second, new = old["strength"] * inherited, old["rest"] * inherited, 1 - kept  # shares of the new row, (c,) each
        takes = new >= owner
        fresh = np.zeros(len(tokens), ENTRY)
        fresh["number"] = np.where(takes, number, old["number"])
        fresh["token"] = np.where(takes, np.asarray(tokens), old["token"])
        fresh["turn"] = np.where(takes, turns, old["turn"])
        size = heard(after, eps)
        fresh["strength"] = np.where(takes, new, owner) * size
        loser, lost = np.where(takes, old["turn"], turns), np.where(takes, owner, new)
        lost = np.where(loser == fresh["turn"], 0, lost)
        second = np.where(old["second"] == fresh["turn"], 0, second)
        fresh["second"] = np.where(lost >= second, loser, old["second"])
        fresh["rest"] = np.maximum(lost, second) * size
        fresh["second"][fresh["rest"] == 0] = HEAD
        rows = self.rows.copy()
        rows[places] = fresh
        return Ledger(rows)

    def of(self, turn: int) -> np.ndarray:
        """Rows (n,) that forgetting `turn` takes: those it owns, and those it still has a good part of."""
        rows = self.rows
        part = rows["rest"] >= RESIDUE * (rows["strength"] + rows["rest"])
        return (self.owned & (rows["turn"] == turn)) | ((rows["rest"] > 0) & (rows["second"] == turn) & part)

    def knows(self, turn: int) -> bool:
        """Whether `turn` has any part of any row."""
        return bool((self.owned & (self.rows["turn"] == turn)).any() or ((self.rows["rest"] > 0) & (self.rows["second"] == turn)).any())

    @property
    def owned(self) -> np.ndarray:
        """Rows (n,) that a token is known of."""
        return self.rows["number"] >= 0

    def without(self, turn: int) -> "Ledger":
        """The ledger with the rows of `of(turn)` never written, and no mention of the turn."""
        rows, gone = self.rows.copy(), self.of(turn)
        faint = rows["second"] == turn
        rows["second"][faint], rows["rest"][faint] = HEAD, 0
        rows[gone] = Ledger.empty(1).rows[0]
        return Ledger(rows)


def heard(bank: np.ndarray, eps: float) -> np.ndarray:
    """How large rows are to a reader: bank (l, c, d) -> (c,). Reading divides a row by sqrt(RMS^2 + eps): well below sqrt(eps) it adds nothing."""
    if not len(bank):
        return np.zeros(bank.shape[1])
    square = np.square(bank, dtype=np.float64).mean(axis=-1)  # (l, c)
    size: np.ndarray = (square / np.sqrt(square + eps)).mean(axis=0)  # (c,): RMS, times the part of it that the division leaves
    return size


def kept_share(before: np.ndarray, after: np.ndarray, eps: float) -> np.ndarray:
    """The old rows' share of the new ones, 0 to 1: before, after (l, c, d) -> (c,). Banks count as they are heard."""
    old, new = before.astype(np.float64), after.astype(np.float64)
    along, length = (old * new).sum(axis=-1), (old * old).sum(axis=-1)  # (l, c)
    a = np.clip(np.divide(along, length, out=np.zeros_like(along), where=length > 0), 0, 1)[..., None]  # (l, c, 1)
    left, added = heard_each(a * old, new, eps), heard_each(new - a * old, new, eps)  # (c,) each
    return np.divide(left, left + added, out=np.zeros_like(left), where=left + added > 0)


def heard_each(part: np.ndarray, whole: np.ndarray, eps: float) -> np.ndarray:
    """The size of a part of rows, as it is heard in the whole: both (l, c, d) -> (c,), summed over banks."""
    square = np.square(whole).mean(axis=-1)  # (l, c)
    loud = np.sqrt(np.divide(square, square + eps, out=np.zeros_like(square), where=square > 0))
    total: np.ndarray = (np.sqrt(np.square(part).mean(axis=-1)) * loud).sum(axis=0)  # (c,)
    return total


def turns_of(spans: Spans, begin: int, end: int) -> np.ndarray:
    """The turn of each position begin .. end - 1 of a window, int32 (end - begin,). spans: where turns begin, ascending; before the first: UNKNOWN."""
    starts = np.array([start for start, _ in spans], dtype=np.int64)
    turns = np.array([UNKNOWN, *(turn for _, turn in spans)], dtype=np.int32)
    found: np.ndarray = turns[np.searchsorted(starts, np.arange(begin, end), side="right")]
    return found


def moved(spans: Spans, begin: int, head: int) -> Spans:
    """Where turns begin in a window of `head` tokens of every window and the positions from `begin` on of this one."""
    inside = [turn for start, turn in spans if start <= begin]
    after = [(start - begin + head, turn) for start, turn in spans if start > begin]
    first = [(head, inside[-1] if inside else UNKNOWN)]
    return (*([(0, HEAD)] if head else []), *(first if inside or spans or begin else []), *after)


def spans_of(turns: Iterable[int]) -> Spans:
    """The spans of positions whose turns are these."""
    out: list[tuple[int, int]] = []
    for at, turn in enumerate(turns):
        if not out or out[-1][1] != turn:
            out.append((at, int(turn)))
    return tuple(out)
