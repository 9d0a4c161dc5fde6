"""Reads chunks, or a session's window, and a question through a torch model and keeps what its memory did. Knows the runtime's Model and the recorder of models/inspect.py.

Axes: l banks, t positions, n rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...models.errors import BackendError
from ..backend import MemoryState
from ..evaluation.streams import Reader
from ..statefile.record import Moment
from .history import History, Holder

if TYPE_CHECKING:
    from ..loading import Model

Ids = tuple[int, ...]
TOP_ROWS = 8
CONTEXT = 5


class Answered(NamedTuple):
    """A question and its greedy answer. pieces: the text of each token of both; begin: where the answer starts.

    mass: attention of each position over the rows of each bank, (l, t, n); reading: what the tokens of the answer were chosen by, (l, n).
    without: the answer of the same model without its memory.
    """

    question: str
    answer: str
    without: str
    pieces: tuple[str, ...]
    begin: int
    mass: np.ndarray
    reading: np.ndarray


class Read(NamedTuple):
    """A row the answer read. mass: its share of the attention; holder: who the row is most of, or None; before, token, after: the text there."""

    layer: int
    row: int
    mass: float
    holder: Holder | None
    before: str
    token: str
    after: str


@dataclass
class Look:
    """All there is to show. texts: the pieces of each chunk's text. notes: lines about where it is from. history: None for a session without model.

    norms: size of every row at each of `times`, (l, n, times). whole_life: the first time is before the first chunk.
    layers: the model's layer of each bank; word: `layer`, or `bank` where only their number is known. unit: what was written at once, `chunk`, or
    `fold` for a session's window; carried: the pieces at its front that were in the memory before it; begin: of `times`, where its folds begin.
    """

    title: str
    notes: list[str]
    history: History | None
    texts: list[tuple[str, ...]]
    answered: Answered | None
    norms: np.ndarray
    layers: tuple[int, ...]
    times: list[str]
    whole_life: bool
    word: str = "layer"
    unit: str = "chunk"
    carried: tuple[str, ...] = ()
    begin: int | None = None

    @property
    def across(self) -> str:
        """What the columns of `norms` are, in words."""
        first, last = self.times[0], self.times[-1]
        return first if len(self.times) == 1 else f"from {first} to {last}"

    @property
    def rows(self) -> int:
        """Rows worth showing: up to the last one that ever changed; of a memory that is older than what is shown, that is not zero."""
        used = np.ptp(self.norms, axis=-1) > 0 if self.whole_life else self.norms.any(axis=-1)  # (l, n)
        return 1 + int(np.flatnonzero(used.any(axis=0)).max(initial=0))

    def credit(self) -> list[np.ndarray]:
        """For each chunk, how much of the answer's attention went to rows that hold each of its tokens, mean over banks: (t,) a chunk."""
        out = [np.zeros(len(text)) for text in self.texts]
        if self.answered is None or self.history is None:
            return out
        for bank, holders in enumerate(self.history.holders()):
            for row, holder in enumerate(holders):
                if holder.chunk is not None:
                    out[holder.chunk][holder.position] += self.answered.reading[bank, row] * holder.share / len(self.layers)
        return out

    def reads(self, count: int = TOP_ROWS) -> list[list[Read]]:
        """For every bank the rows the answer read most, with the text that is most of each."""
        if self.answered is None:
            return []
        holders = self.history.holders() if self.history else None
        out = []
        for bank, layer in enumerate(self.layers):
            mass = self.answered.reading[bank]
            rows = np.argsort(-mass, kind="stable")[:count]
            out.append([self._read(bank, layer, int(row), float(mass[row]), holders) for row in rows if mass[row] > 0])
        return out

    def _read(self, bank: int, layer: int, row: int, mass: float, holders: list[list[Holder]] | None) -> Read:
        holder = holders[bank][row] if holders else None
        if holder is None or holder.chunk is None:
            return Read(layer, row, mass, holder, "", "", "")
        pieces, at = self.texts[holder.chunk], holder.position
        return Read(
            layer, row, mass, holder, "".join(pieces[max(0, at - CONTEXT) : at]), pieces[at], "".join(pieces[at + 1 : at + 1 + CONTEXT])
        )


class Looker:
    """Looks into one torch model. Raises BackendError for another backend, ModelFileError for another cell."""

    def __init__(self, model: "Model"):
        from ...models.inspect import check_cell

        backend: Any = model.backend
        name = backend.describe().backend
        if name != "torch":
            raise BackendError(f"lm2 inspect needs the torch backend, this is {name}: leave --backend out, or pip install 'lm2[torch]'")
        check_cell(backend.model)
        self.model, self.backend = model, backend
        self.layers = model.config.memory.layers

    def read(self, chunks: Sequence[Ids]) -> tuple[History, np.ndarray]:
        """Commit chunks in order, from the never-written memory on, each counted whole; history and last bank (l, 1, n, d)."""
        bank = Reader(self.backend, (), 1).initial
        history, chunk = History(self.layers, bank[: len(self.layers), 0]), self.model.config.memory.chunk
        for i, ids in enumerate(chunks):
            bank = self._read(history, Moment(bank, i * chunk, tuple(ids), {}))
        return history, bank

    def read_window(self, moment: Moment) -> tuple[History, np.ndarray]:
        """The window of a moment once more, fold by fold; history, and the bank (l, 1, n, d) with all of it written."""
        history = History(self.layers, moment.bank[: len(self.layers), 0])
        return history, self._read(history, moment)

    def _read(self, history: History, moment: Moment) -> np.ndarray:
        import torch

        from ...models.inspect import view_in

        model, chunk, tokens = self.backend.model, self.model.config.memory.chunk, moment.tokens
        if moment.carried == len(tokens):
            return moment.bank
        begun = self.backend.from_host(moment.bank, moment.written)
        tables = model.tables(len(tokens))
        with torch.inference_mode():
            state = model.start(begun.bank, begun.written, len(tokens), moment.carried)
            for here in range(0, moment.carried, chunk):
                ids = torch.tensor([tokens[here : min(here + chunk, moment.carried)]], device=model.device)  # (1, t)
                _, state = model.extend(ids, state, tables)
            while state.length < len(tokens):
                state = model.fold(state)
                here = state.length
                end = min(len(tokens), here + chunk, *(f for f in moment.folds if f > here))
                ids = torch.tensor([tokens[here:end]], device=model.device)  # (1, t)
                seen, state = view_in(model, ids, state, tables)
                write, forget, added, kept = (
                    np.stack([getattr(layer, name).numpy() for layer in seen.layers]) for name in ("write", "forget", "added", "kept")
                )  # (l, t), (l, t), (l, t, d), (l, t, d)
                history.add(tokens[here:end], int(model.places(state.written, 1)), write, forget, added, kept)
            return self.backend.to_host(MemoryState(*model.commit(state)))

    def ask(self, question: str, ids: Ids, bank: np.ndarray, longest: int) -> Answered:
        """The greedy answer to a question in a fresh chunk that reads bank (l, 1, n, d), and what its positions attended to."""
        import torch

        from ...models.inspect import view

        reader = Reader(self.backend, self.model.eos, longest)
        answer, without = reader.ask([bank, reader.initial], [ids, ids])
        state = self.backend.from_host(bank, 0)
        whole = ids + answer
        seen = view(self.backend.model, torch.tensor([whole], device=self.backend.model.device), state.bank, 0, self._tables())
        mass = np.stack([layer.mass.numpy() for layer in seen.layers])  # (l, t, n)
        chosen_by = mass[:, len(ids) - 1 : max(len(ids), len(whole) - 1)]  # the positions whose logits chose the answer's tokens
        texts = tuple(self.model.text.decode(found, skip_special=True).strip() for found in (answer, without))
        return Answered(question, texts[0], texts[1], self.pieces(whole), len(ids), mass, chosen_by.mean(axis=1))

    def pieces(self, ids: Sequence[int]) -> tuple[str, ...]:
        """The text of each token, special ones as they are spelled; what is half a character alone is U+FFFD."""
        return tuple((self.model.text.piece(i, first=n == 0) or b"").decode("utf-8", "replace") for n, i in enumerate(ids))

    def _tables(self) -> Any:
        return self.backend.model.tables()
