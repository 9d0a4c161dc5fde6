"""What the last answer of a session read of its memory: attention over the rows of every bank, and whose words those rows held then.

The window is run once more up to the answer, beside the session, which stays as it is. Knows a session, the torch model behind it and the recorder of
models/inspect.py. Axes: l banks, t positions, n rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...models.errors import BackendError
from ..session.cursor import Cursor
from ..session.ledger import UNKNOWN, Ledger
from ..session.transcript import last_exchange

if TYPE_CHECKING:
    from ...models.lm2 import LM2
    from ..session.session import Session

Run = Callable[[Callable[[], Any]], Any]
ROWS = 12
TOKENS = 256  # of an answer that are looked at, the last


class RowRead(NamedTuple):
    """A row that was read. share: of the attention, mean over banks; turn, token: whose it is most of, UNKNOWN and "" where nobody noted it."""

    row: int
    share: float
    turn: int
    token: str


@dataclass(frozen=True)
class Attention:
    """pieces: the text of each position looked at: the last of the prompt, then those of the answer, so that each but the last chose the next.

    layers: the model's layer of each bank. mass (l, t, n): attention of each position over the rows, mean over heads. written: tokens in the memory when
    the answer began; 0: there was nothing to read. turns: share of the attention by turn, largest first, mean over positions and banks, of rows whose
    turn is known. rows: those read most.
    """

    turn: int
    pieces: tuple[str, ...]
    layers: tuple[int, ...]
    mass: np.ndarray
    written: int
    turns: tuple[tuple[int, float], ...]
    rows: tuple[RowRead, ...]


def check_visible(session: "Session") -> "LM2":
    """The torch model behind a session. Raises BackendError for another backend, ModelFileError for a cell whose attention cannot be looked at."""
    from ...models.inspect import check_cell

    backend: Any = session.model.backend
    backend = getattr(backend, "real", backend)  # behind a server
    name = backend.describe().backend
    if name != "torch":
        raise BackendError(f"what an answer read of the memory can be looked at on the torch backend, this is {name}")
    model: LM2 = backend.model
    check_cell(model)
    return model


def look_at_answer(session: "Session", run: Run = lambda work: work()) -> Attention | None:
    """What the last answer read; None where the last turn was no answer. run: calls its argument in the thread that owns the model.

    Feeds at most a window through the session's backend. Raises as `check_visible`.
    """
    from ...models.inspect import view_in

    model = check_visible(session)
    session.settle()
    at = session.at
    ids = at.tokens + at.pending
    places = _places(session, ids)
    if places is None:
        return None
    first, end = places
    own = session.feeder
    feeder = type(own)(own.backend, own.size, own.overlap, noting=own.noting)  # nobody hears of what is run again
    tables = run(lambda: model.tables(own.size))
    mass: list[np.ndarray] = []
    noted: Ledger | None = None
    here, going, written = first, _until(at, first), 0
    while here < end:
        going = feeder.flush(going)
        if here - going.window.folded == feeder.chunk:  # as a flush does before it feeds more
            going = feeder.flush(going._replace(folds=(*going.folds, here)))
        state = getattr(going.window, "inner", going.window)
        if here == first:
            noted, written = going.noted(), int(state.written)
        stop = min(end, state.folded + feeder.chunk)
        mass.append(run(partial(_mass, view_in, model, ids[here:stop], state, tables)))
        going = going._replace(pending=ids[here:stop])
        here = stop
    whole = np.concatenate(mass, axis=1)  # (l, t, n)
    text = session.model.text
    pieces = tuple((text.piece(i, first=False) or b"").decode("utf-8", "replace") for i in ids[first:end])
    turns, rows = _whose(whole, noted, lambda token: (text.piece(token, first=False) or b"").decode("utf-8", "replace"))
    return Attention(at.number, pieces, session.model.config.memory.layers, whole, written, turns, rows)


def _places(session: "Session", ids: tuple[int, ...]) -> tuple[int, int] | None:
    """Where the last prompt's last token stands in the window, and where the answer ends, without the turn's closing tokens."""
    exchange, at = last_exchange(session.transcript), session.at
    if exchange is None or not at.spans or at.spans[-1][1] != at.number:
        return None
    start, wording = at.spans[-1][0], session.wording
    closing = wording.closing()
    end = len(ids) - (len(closing) if ids[len(ids) - len(closing) :] == closing else 0)
    first = start
    for begin, prompt in ((start, wording.turn(exchange, first=False)), (0, wording.turn(exchange, first=True))):
        if ids[begin : begin + len(prompt)] == prompt and begin + len(prompt) > start:
            first = begin + len(prompt) - 1
            break
    first = max(first, at.carried, end - TOKENS)
    return (first, end) if first < end else None


def _until(at: Cursor, place: int) -> Cursor:
    """The session's window up to a place in it, to be run again."""
    ids, folds = at.tokens + at.pending, tuple(f for f in at.folds if f <= place)
    return at._replace(window=None, tokens=(), pending=ids[:place], folds=folds, logits=None, held=None)


def _mass(view_in: Any, model: Any, ids: tuple[int, ...], state: Any, tables: Any) -> np.ndarray:
    import torch

    seen, _ = view_in(model, torch.tensor([ids], device=model.device), state, tables)
    return np.stack([layer.mass.numpy() for layer in seen.layers])  # (l, t, n)


def _whose(mass: np.ndarray, ledger: Ledger | None, text: Callable[[int], str]) -> tuple[tuple[tuple[int, float], ...], tuple[RowRead, ...]]:
    share = mass.mean(axis=(0, 1))  # (n,)
    if ledger is None:
        turns, tokens = np.full(len(share), UNKNOWN), np.full(len(share), -1)
    else:
        rows = ledger.rows
        loud = rows["sizes"][:, 0] > 0
        turns = np.where(loud, rows["turns"][:, 0], UNKNOWN)  # (n,)
        tokens = np.where(ledger.known, rows["token"], -1)
    known = sorted({int(t) for t in turns if t != UNKNOWN})
    by_turn = sorted(((t, float(share[turns == t].sum())) for t in known), key=lambda pair: (-pair[1], pair[0]))
    best = [int(row) for row in np.argsort(-share, kind="stable")[:ROWS] if share[row] > 0]
    return tuple(by_turn), tuple(RowRead(r, float(share[r]), int(turns[r]), text(int(tokens[r])) if tokens[r] >= 0 else "") for r in best)
