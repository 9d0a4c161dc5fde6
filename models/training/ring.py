"""A memory's bank in training as the blocks that chunks write: only what a chunk changed is copied and projected again.

Same numbers as passes.read over whole banks (a test holds them together). With 512 rows and chunks of 32 tokens, whole banks cost as much as
the model: every chunk's gradient was a bank of zeros with one block in it. Cell gated only.

Axes: b batch, t positions (T in a chunk), n rows, d hidden, h memory heads, e head width.
"""

from typing import cast

import torch
from torch import Tensor

from ..llama import wide
from ..lm2 import LM2
from ..memory import GatedMemory
from . import passes


class Rings:
    """All banks of a batch, never written at first. blocks: chunks until rows are written again. reads: keys and values as passes.Reads.

    Raises ValueError for a memory that does not start as zeros.
    """

    def __init__(self, model: LM2, batch: int, blocks: int):
        m, d = model.config.memory, model.config.hidden_size
        if m.init != "zeros":
            raise ValueError(f"memory.init {m.init!r} must be zeros: blocks that were never written are shared")
        if m.keys != "row":
            raise ValueError(f"memory.keys {m.keys!r} must be 'row': blocks are kept apart here, and a key of two rows would reach over their borders")
        self.model, self.blocks = model, blocks
        self.memories = [cast(GatedMemory, model.blocks[i].memory) for i in m.layers]
        empty = torch.zeros(batch, m.chunk, d, dtype=wide(model.dtype), device=model.device)  # (b, T, d)
        nothing = torch.zeros(batch, m.heads, m.chunk, m.head_dim, dtype=model.dtype, device=model.device)  # (b, h, T, e)
        self.rows = [[empty] * blocks for _ in m.layers]
        self._keys = [[nothing] * blocks for _ in m.layers]
        self._values = [[nothing] * blocks for _ in m.layers]
        self.reads = self._joined()

    def _joined(self) -> list[tuple[Tensor, Tensor]]:
        return [(torch.cat(k, dim=2), torch.cat(v, dim=2)) for k, v in zip(self._keys, self._values, strict=True)]  # (b, h, n, e) each

    def read(self, x: Tensor, chunk: int, present: Tensor, gates: list[Tensor] | None = None) -> list[Tensor]:
        """Take in embedded tokens x (b, T, d) as chunk number `chunk`; the rows (b, T, d) each memory wrote for them.

        present, gates: as in passes.read.
        """
        at, width = chunk % self.blocks, x.shape[1]
        cos, sin = (table[:width] for table in self.model.tables())
        written: list[Tensor] = []
        for i in range(self.model.config.memory.layers[-1] + 1):
            block, add = self.model.blocks[i], None
            if block.memory is not None:
                j = self.model.bank_of[i]
                old = self.rows[j][at]
                with passes.watched(self.memories[j], gates):
                    add, rows = self.memories[j](x, self.reads[j], old)
                written.append(torch.where(present[..., None], rows, old))
                if j == len(self.memories) - 1:
                    break
            a = block.self_attn(block.input_layernorm(x).to(x.dtype), cos, sin, passes.whole)  # (b, T, d)
            x = block.finish(x, a if add is None else a + add)
        for j, rows in enumerate(written):
            self.rows[j][at] = rows
            self._keys[j][at], self._values[j][at] = self.memories[j].keys_values(rows, self.model.dtype)
        self.reads = self._joined()
        return written
