"""What every layer of the MLX model computed for one chunk, by name: for comparing backends, not for running.

Knows the parts of model.py and notes what they return, on a copy of the model that shares its weights: what is seen is what `extend` and
`commit` do, uncompiled. Names are those of the PyTorch reference's trace.
Axes: b batch, t positions, d hidden, l banks, n rows, v vocabulary.
"""

from dataclasses import dataclass, field

import mlx.core as mx

from .llama import Attention, Cache
from .memory import GatedMemory, ReleasedMemory
from .model import LM2, Block

Notes = dict[str, mx.array]


@dataclass
class _Attention(Attention):
    notes: Notes = field(default_factory=dict)
    name: str = ""

    def output(self, a: mx.array) -> mx.array:
        self.notes[self.name] = super().output(a)  # (b, t, d)
        return self.notes[self.name]


@dataclass
class _Gated(GatedMemory):
    notes: Notes = field(default_factory=dict)
    name: str = ""

    def step(self, x: mx.array, k: mx.array, v: mx.array, looks: mx.array | None = None) -> tuple[mx.array, mx.array, mx.array]:
        seen, add, read = super().step(x, k, v, looks)
        self.notes |= {f"{self.name}.read": read, f"{self.name}.add": add}
        return seen, add, read

    def rewrite(self, u: mx.array, read: mx.array | None, old: mx.array) -> tuple[mx.array, mx.array]:
        rows, told = super().rewrite(u, read, old)  # (b, t, d), (b, t, 1)
        for part in ("read", "add"):
            self.notes.setdefault(f"{self.name}.{part}", mx.zeros_like(rows))
        self.notes[f"{self.name}.rows"] = rows
        return rows, told


@dataclass
class _Released(ReleasedMemory):
    notes: Notes = field(default_factory=dict)
    name: str = ""

    def rewrite(self, x: mx.array, rows: mx.array, cache: Cache, pooled: mx.array) -> mx.array:
        self.notes[f"{self.name}.rows"] = super().rewrite(x, rows, cache, pooled)  # (b, t, n)
        return self.notes[f"{self.name}.rows"]


@dataclass
class _Block(Block):
    notes: Notes = field(default_factory=dict)
    name: str = ""

    def join(self, x: mx.array, joined: mx.array) -> mx.array:
        self.notes[self.name] = super().join(x, joined)  # (b, t, d)
        return self.notes[self.name]


def trace(model: LM2, ids: mx.array, bank: mx.array, written: int) -> list[tuple[str, mx.array]]:
    """Feed ids (b, t) to a new window that reads `bank` (l, b, n, d): names and computed arrays in the order of a layer's computation.

    `embedding`; per layer i `layers.i.attention`, with a memory `layers.i.memory.read` and `.add` (cell gated) and `.rows` (new rows),
    `layers.i.output`, each (b, t, d); then `norm` (b, t, d) and `logits` (b, t, v). Raises ValueError past the window's end.
    """
    notes: Notes = {}
    blocks: list[Block] = []
    for i, block in enumerate(model.blocks):
        memory = block.memory
        if isinstance(memory, GatedMemory):
            memory = _Gated(**vars(memory), notes=notes, name=f"layers.{i}.memory")
        elif isinstance(memory, ReleasedMemory):
            memory = _Released(**vars(memory), notes=notes, name=f"layers.{i}.memory")
        attention = _Attention(**vars(block.attention), notes=notes, name=f"layers.{i}.attention")
        blocks.append(_Block(**(vars(block) | {"attention": attention, "memory": memory}), notes=notes, name=f"layers.{i}.output"))
    watched = LM2(model.config, model.embed, blocks, model.norm, model.head, model.cpu, compiled=False)
    watched.cos, watched.sin = model.cos, model.sin
    logits, chunk = watched.extend(ids, watched.start(bank, written), all_logits=True)  # (b, t, v)
    after, _ = watched.commit(chunk)
    ordered = [("embedding", model.embedded(ids))]
    for i in range(len(blocks)):
        parts = ("attention", "memory.read", "memory.add", "memory.rows", "output")
        ordered += [(name, notes[name]) for name in (f"layers.{i}.{part}" for part in parts) if name in notes]
    ordered += [("norm", model.norm(ordered[-1][1])), ("logits", logits)]
    mx.eval(after, [value for _, value in ordered])
    return ordered
