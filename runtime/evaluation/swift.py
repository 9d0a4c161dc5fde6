"""Reading many streams with torch as fast as their arithmetic allows: banks, keys and values of all of them stay where they are computed, and after a chunk only
the rows that it wrote get new keys and values. The same numbers as streams.Reader's way over the backend's contract, rounding apart (a test holds them together).

For evaluation alone: cell gated, a bank of zeros at the start, keys of a row, no topics. Axes: b streams, k of them with a chunk left, t positions, n rows, d width,
l banks, h memory heads, e head width.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from .streams import PAD, Ids, Reader

if TYPE_CHECKING:
    import torch

    from ...models.lm2 import LM2
    from ...models.memory import GatedMemory


def model_of(backend: Any) -> "LM2 | None":
    """The model that a backend holds, where it can be read so; None for another backend or memory."""
    m = backend.config.memory
    plain = m.cell == "gated" and m.layers and m.init == "zeros" and m.keys == "row" and not m.topics
    if not plain or backend.describe().backend != "torch" or backend.describe().device != "cpu":
        return None
    return cast("LM2 | None", getattr(backend, "model", None))


def reader_of(backend: Any, ends: Iterable[int], longest: int, check: Callable[[], None]) -> Reader:
    """The fastest reader for a backend."""
    model = model_of(backend)
    return Reader(backend, ends, longest, check) if model is None else SwiftReader(model, backend, ends, longest, check)


class SwiftReader(Reader):
    """A Reader whose `read` goes past the backend's windows. model: `model_of` the backend."""

    def __init__(self, model: "LM2", *args: Any):
        super().__init__(*args)
        self.model = model

    def read(self, streams: Sequence[tuple[Ids, ...]], fed: Callable[[int], None] = lambda tokens: None) -> list[np.ndarray]:
        """As Reader.read: the banks that streams end with, each (l, 1, n, d) float32."""
        import torch

        order = sorted(range(len(streams)), key=lambda i: -len(streams[i]))  # those with a chunk left come first
        with torch.inference_mode():
            banks = _Banks(self.model, len(streams))
            for step in range(len(streams[order[0]]) if order else 0):
                self.check()
                rows = [streams[i][step] for i in order if step < len(streams[i])]
                banks.read(rows, step)
                fed(sum(map(len, rows)))
            host = banks.rows.float().numpy()  # (l, b, n, d)
        place = {i: at for at, i in enumerate(order)}
        return [host[:, place[i] : place[i] + 1] for i in range(len(streams))]


class _Banks:
    """All banks of b streams, and their keys and values, never written at first."""

    def __init__(self, model: "LM2", b: int):
        import torch

        m = model.config.memory
        self.model, self.tables = model, model.tables()
        self.rows = model.initial_bank(b)  # (l, b, n, d)
        self.memories = [cast("GatedMemory", model.blocks[i].memory) for i in m.layers]
        shape = (m.banks, b, m.heads, m.slots, m.head_dim)
        self.keys, self.values = (torch.zeros(shape, dtype=model.dtype) for _ in range(2))  # (l, b, h, n, e) each

    def read(self, chunks: Sequence[Ids], step: int) -> None:
        """Take in chunk number `step` of the first k streams."""
        import torch

        model, k, t = self.model, len(chunks), max(map(len, chunks))
        ids = torch.full((k, t), PAD)
        for i, tokens in enumerate(chunks):
            ids[i, : len(tokens)] = torch.tensor(tokens)
        present = torch.arange(t) < torch.tensor([len(c) for c in chunks])[:, None]  # (k, t)
        first = step * model.config.memory.chunk % model.config.memory.slots
        cos, sin = (table[:t] for table in self.tables)
        x = model.embed_tokens(ids)  # (k, t, d)
        for i in range(model.config.memory.layers[-1] + 1):
            block = model.blocks[i]
            add: torch.Tensor | None = None
            if block.memory is not None:
                add = self._written(model.bank_of[i], x, present, k, first)
                if i == model.config.memory.layers[-1]:
                    return
            a = block.self_attn(block.input_layernorm(x).to(x.dtype), cos, sin, lambda keys, values: (keys, values))  # (k, t, d)
            x = block.finish(x, a if add is None else a + add)

    def _written(self, j: int, x: "torch.Tensor", present: "torch.Tensor", k: int, first: int) -> "torch.Tensor | None":
        """What memory j adds for x (k, t, d); its rows, keys and values are written where tokens are."""
        import torch

        memory, t = self.memories[j], x.shape[1]
        old = self.rows[j, :k, first : first + t]  # (k, t, d)
        add, rows = memory(x, (self.keys[j, :k], self.values[j, :k]), old)
        rows = torch.where(present[..., None], rows, old)
        old.copy_(rows)
        keys, values = memory.keys_values(rows, self.model.dtype)  # (k, h, t, e) each
        self.keys[j, :k, :, first : first + t] = keys
        self.values[j, :k, :, first : first + t] = values
        return cast("torch.Tensor | None", add)
