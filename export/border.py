"""What a call does first when it ends one chunk and begins the next, cell gated: the finished chunk's rows, and K and V of the bank.

Both stand in an If, since the other calls of a chunk do neither. A row is read by nobody before the next chunk, so its gates are computed
here for all positions at once: their matrices are read once a chunk and not once a token.

Axes: b batch, p positions of the finished chunk, n rows of a bank, d hidden, l banks, h memory heads, e head width, w what a position keeps.
"""

from onnx import TensorProto

from ..models.config import LM2Config
from .graph import Graph
from .memory import MemoryLayers

Pairs = dict[int, tuple[str, str]]


class Border:
    """Adds both parts to a graph. banks: (b, l, n, d)."""

    def __init__(self, graph: Graph, config: LM2Config, memory: MemoryLayers):
        self.graph, self.config, self.memory = graph, config, memory

    def rows(self, writes: str, bank: str, first: str, finished: str) -> str:
        """The rows (b, l, p, d) of `finished` (1,) positions, that stand from row `first` (1,) on; with 0 of them none. writes (b, l, T, w)."""
        m = self.config.memory

        def rewrite(g: Graph) -> list[str]:
            made = g.slice(writes, g.constant([0]), finished, 2)  # (b, l, p, w)
            old = g.slice(bank, first, g.op("Add", first, finished), 2)  # (b, l, p, d)
            rows = []
            for j, i in enumerate(m.layers):
                with g.scope(f"layers.{i}"):
                    own, before = (g.op("Gather", x, g.constant(j), axis=1) for x in (made, old))  # (b, p, w), (b, p, d)
                    rows.append(g.op("Unsqueeze", self.memory.rewritten(g, own, before, i), g.constant([1])))
            return [stacked(g, rows)]

        def nothing(g: Graph) -> list[str]:
            return [g.slice(bank, g.constant([0]), g.constant([0]), 2)]  # (b, l, 0, d)

        some = self.graph.op("Squeeze", self.graph.op("Greater", finished, self.graph.constant([0])))
        shape: list[int | str] = ["batch", m.banks, "rows_written", self.config.hidden_size]
        labels = ("finish_chunk", "unfinished_chunk")
        (rows,) = self.graph.either(some, rewrite, nothing, TensorProto.FLOAT, shape, "memory_rows", labels)
        return rows

    def reads(self, bank: str, past: Pairs, kind: int) -> Pairs:
        """K and V (b, h, n, e) of each memory layer where a chunk begins, (b, h, 0, e) where one goes on. past: the state's, of type `kind`."""
        m, layers = self.config.memory, list(past)

        def begin(g: Graph) -> list[str]:
            made: list[str] = []
            for j, i in enumerate(layers):
                with g.scope(f"layers.{i}"):
                    made += self.memory.keys_values(g, g.op("Gather", bank, g.constant(j), axis=1), i)
            return made

        def keep(g: Graph) -> list[str]:
            nothing = g.slice(past[layers[0]][0], g.constant([0]), g.constant([0]), 2)
            return [g.op("Identity", nothing) for _ in range(2 * len(layers))]

        new = self.graph.op("Squeeze", self.graph.op("Equal", "new_chunk", self.graph.constant([1])))
        shape: list[int | str] = ["batch", m.heads, "rows_read", m.head_dim]
        fresh = self.graph.either(new, begin, keep, kind, shape, "memory_reads", ("begin_chunk", "same_chunk"))
        return {i: (fresh[2 * n], fresh[2 * n + 1]) for n, i in enumerate(layers)}


def stacked(g: Graph, parts: list[str]) -> str:
    """(b, 1, t, d) each -> (b, l, t, d)"""
    return parts[0] if len(parts) == 1 else g.op("Concat", *parts, axis=1)
