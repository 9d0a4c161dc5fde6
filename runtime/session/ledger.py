"""Which turn's tokens the rows of a memory hold, row by row, and how strongly. Arrays and numbers: knows no model, no text, no file.

A bank is a ring: token number i writes row i mod n over what was there, new = write * content + forget * old. So an older token may outlive younger
ones whose write gates were shut. Whose a row is can be told from the bank alone, before and after a fold: what is left of the old row is the part of
the new one along it, the rest is the token's. Axes: l banks, n rows, c rows of one fold, p parts
of a row, d width.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

HEAD = 0  # the turn of what every window begins with (the system prompt), and in place of none
UNKNOWN = -1  # of what was written before turns were noted
NONE = -1  # in place of a token's number and id, where none is known
PARTS = 4  # turns told apart in a row
RESIDUE = 0.1  # a turn's share of a row that another one owns, from which on forgetting the turn takes the row

ENTRY = np.dtype([("number", "<i8"), ("token", "<i4"), ("turns", "<i4", PARTS), ("sizes", "<f4", PARTS)])  # packed: 44 bytes
Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class Ledger:
    """rows (n,) of ENTRY, read-only: the token a row is most of (its number in the conversation, its id), and the turns in the row, the token's first, with
    the sizes of their parts, falling. Sizes are root mean squares, mean over the banks, as far as a reader hears them, and add up in squares; 0 where there is no turn.
    A change makes a new ledger: old ones may be kept.
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
        size, rows = heard(bank, eps), cls.empty(bank.shape[1]).rows.copy()
        rows["turns"][:, 0] = np.where(size > 0, UNKNOWN, HEAD)
        rows["sizes"][:, 0] = size
        return cls(rows)

    def folded(
        self, first: int, tokens: Sequence[int], turns: np.ndarray, before: np.ndarray, after: np.ndarray, eps: float
    ) -> "Ledger":
        """The ledger after a fold of c tokens, the first of them number `first`. turns (c,); before, after: their rows of the bank, (l, c, d).

        The parts of a row shrink as the old row does, and the token takes the row over once its own part is as large as the largest.
        """
        number = first + np.arange(len(tokens))  # (c,)
        places = number % len(self.rows)
        old = self.rows[places]
        total, (kept, new) = heard(before, eps), split(before, after, eps)  # (c,) each
        scale = np.divide(kept, total, out=np.zeros_like(total), where=total > 0)
        shares = np.concatenate((new[:, None], old["sizes"] * scale[:, None]), axis=1)  # (c, 1 + p), of the new row
        whose = np.concatenate((turns[:, None], old["turns"]), axis=1)  # (c, 1 + p)
        takes = shares[:, 0] >= shares[:, 1]
        again = whose[:, 1:] == turns[:, None]  # (c, p): the turn has a part of the row already
        into = np.where(again[:, 0] & ~takes, 1, 0)  # where both are then counted
        both = np.sqrt(shares[:, 0] ** 2 + np.where(again, shares[:, 1:] ** 2, 0).sum(axis=1))
        shares[:, 1:][again] = 0
        shares[:, 0] = 0
        shares[np.arange(len(tokens)), into] = both
        order = np.argsort(-shares, axis=1, kind="stable")[:, :PARTS]  # (c, p)
        order[takes] = _with_first(order[takes], 0)
        order[~takes] = _with_first(order[~takes], 1)
        fresh = np.zeros(len(tokens), ENTRY)
        fresh["number"], fresh["token"] = np.where(takes, number, old["number"]), np.where(takes, np.asarray(tokens), old["token"])
        fresh["sizes"] = np.take_along_axis(shares, order, axis=1) * heard(after, eps)[:, None]
        fresh["turns"] = np.take_along_axis(whose, order, axis=1)
        fresh["turns"][:, 1:][fresh["sizes"][:, 1:] == 0] = HEAD
        rows = self.rows.copy()
        rows[places] = fresh
        return Ledger(rows)

    @property
    def known(self) -> np.ndarray:
        """Rows (n,) that a token is known of."""
        known: np.ndarray = self.rows["number"] >= 0
        return known

    def parts(self, turn: int) -> np.ndarray:
        """The size of the turn's part of every row, (n,), 0 where it owns a row that cannot be heard."""
        size: np.ndarray = np.where(self.rows["turns"] == turn, self.rows["sizes"], 0).max(axis=1)
        return size

    def owned(self, turn: int) -> np.ndarray:
        """Rows (n,) whose token is the turn's."""
        return self.known & (self.rows["turns"][:, 0] == turn)

    def of(self, turn: int) -> np.ndarray:
        """Rows (n,) that forgetting `turn` takes: those it owns, and those it still has a good part of."""
        part, total = self.parts(turn), self.rows["sizes"].sum(axis=1)
        return self.owned(turn) | ((part > 0) & (part >= RESIDUE * total))

    def knows(self, turn: int) -> bool:
        """Whether `turn` owns a row or has a part of one."""
        return bool(self.owned(turn).any() or (self.parts(turn) > 0).any())

    def without(self, turn: int) -> "Ledger":
        """The ledger with the rows of `of(turn)` never written, and no mention of the turn."""
        rows, gone = self.rows.copy(), self.of(turn)
        for part in range(1, PARTS):
            faint = rows["turns"][:, part] == turn
            rows["turns"][faint, part:-1], rows["sizes"][faint, part:-1] = rows["turns"][faint, part + 1 :], rows["sizes"][faint, part + 1 :]
            rows["turns"][faint, -1], rows["sizes"][faint, -1] = HEAD, 0
        rows[gone] = Ledger.empty(1).rows[0]
        return Ledger(rows)


def _with_first(order: np.ndarray, part: int) -> np.ndarray:
    """Each row of order (c, p) with `part` moved to its front: it is the owner's, also where others are as large."""
    rest = np.argsort(order != part, axis=1, kind="stable")
    found: np.ndarray = np.take_along_axis(order, rest, axis=1)
    found[:, 0] = part
    return found


def heard(bank: np.ndarray, eps: float) -> np.ndarray:
    """How large rows are to a reader: bank (l, c, d) -> (c,). Reading divides a row by sqrt(RMS^2 + eps): well below sqrt(eps) it adds nothing."""
    if not len(bank):
        return np.zeros(bank.shape[1])
    square = np.square(bank, dtype=np.float64).mean(axis=-1)  # (l, c)
    size: np.ndarray = (square / np.sqrt(square + eps)).mean(axis=0)  # (c,): RMS, times the part of it that the division leaves
    return size


def split(before: np.ndarray, after: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """The sizes of what is left of old rows and of what is new, in those of the new rows: before, after (l, c, d) -> (c,) each, squares adding up to 1.

    Parts of a row are told from one another as if they were at right angles. Banks count as they are heard; where nothing is, all is new.
    """
    old, whole = before.astype(np.float64), after.astype(np.float64)
    along, length = (old * whole).sum(axis=-1), (old * old).sum(axis=-1)  # (l, c)
    a = np.clip(np.divide(along, length, out=np.zeros_like(along), where=length > 0), 0, 1)[..., None]  # (l, c, 1)
    left, added = heard_each(a * old, whole, eps), heard_each(whole - a * old, whole, eps)  # (c,) each
    both = np.hypot(left, added)
    kept = np.divide(left, both, out=np.zeros_like(left), where=both > 0)
    return kept, np.divide(added, both, out=np.ones_like(added), where=both > 0)


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
