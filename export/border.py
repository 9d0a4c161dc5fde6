"""What a call does first when rows enter the bank, cell gated: the rows of the positions since the last fold, and K and V of what is read anew.

Both stand in an If, since all other calls do neither. A row is read by nobody before the next fold, so its gates are computed
here for all positions at once: their matrices are read once a fold and not once a token.

Axes: b batch, p positions since the last fold, m rows read anew, n rows of a bank, d hidden, l banks, h memory heads, e head width, w what a position keeps.
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
        """The rows (b, l, p, d) of `finished` (1,) positions, whose places go round the bank from row `first` (1,) on; with 0 of them none.
        writes (b, l, T, w)."""
        m = self.config.memory

        def rewrite(g: Graph) -> list[str]:
            made = g.slice(writes, g.constant([0]), finished, 2)  # (b, l, p, w)
            old = g.op("Gather", bank, self._places(g, first, finished), axis=2)  # (b, l, p, d)
            rows: list[str] = []
            gates: list[str] = []
            for j, i in enumerate(m.layers):
                with g.scope(f"layers.{i}"):
                    own, before = (g.op("Gather", x, g.constant(j), axis=1) for x in (made, old))  # (b, p, w), (b, p, d)
                    row, gate = self.memory.rewritten(g, own, before, i)  # (b, p, d) each
                    rows.append(g.op("Unsqueeze", row, g.constant([1])))
                    gates.append(gate)
            if self.memory.topics:
                own, before = (g.op("Gather", x, g.constant(len(m.layers)), axis=1) for x in (made, old))  # (b, p, w), (b, p, d)
                told = self.memory.told(g, gates[0])  # (b, p, 1)
                rows.append(g.op("Unsqueeze", self.memory.topics.rewritten(g, own, told, before), g.constant([1])))
            return [stacked(g, rows)]

        def nothing(g: Graph) -> list[str]:
            return [g.slice(bank, g.constant([0]), g.constant([0]), 2)]  # (b, l, 0, d)

        some = self.graph.cast(finished, "bool")
        shape: list[int | str] = ["batch", m.banks, "rows_written", self.config.hidden_size]
        labels = ("rows_enter", "nothing_enters")
        (rows,) = self.graph.either(some, rewrite, nothing, TensorProto.FLOAT, shape, "memory_rows", labels)
        return rows

    def reads(self, bank: str, past: Pairs, kind: int, first: str, finished: str) -> Pairs:
        """K and V (b, h, m, e) of each memory layer, of the rows that go round the bank from row `first` (1,) on: all of them where a window
        begins, the `finished` (1,) new ones at a fold (with `keys: pair` the one behind them too), else none. past: the state's, of type `kind`."""
        m, layers = self.config.memory, list(past)

        def begin(g: Graph) -> list[str]:
            made: list[str] = []
            fold = g.op("Equal", "new_chunk", g.constant([3]))
            some = g.op("Min", g.op("Add", finished, g.constant([1])), g.constant([m.slots])) if self.memory.pair else finished
            count = g.op("Max", g.op("Where", fold, some, g.constant([m.slots])), g.constant([1]))
            start = first
            if self.memory.pair:
                start, count = g.op("Add", first, g.constant([m.slots - 1])), g.op("Add", count, g.constant([1]))
            rows = g.op("Gather", bank, self._places(g, start, count), axis=2)  # (b, l, m or m + 1, d)
            told = g.op("Gather", rows, g.constant(len(layers)), axis=1) if m.values == "topics" else ""  # (b, m or m + 1, d)
            for j, i in enumerate(layers):
                with g.scope(f"layers.{i}"):
                    made += self.memory.keys_values(g, g.op("Gather", rows, g.constant(j), axis=1), i, told)
            return made

        def keep(g: Graph) -> list[str]:
            nothing = g.slice(past[layers[0]][0], g.constant([0]), g.constant([0]), 2)
            return [g.op("Identity", nothing) for _ in range(2 * len(layers))]

        shape: list[int | str] = ["batch", m.heads, "rows_read", m.head_dim]
        fresh = self.graph.either(self._anew(), begin, keep, kind, shape, "memory_reads", ("read_anew", "read_as_before"))
        return {i: (fresh[2 * n], fresh[2 * n + 1]) for n, i in enumerate(layers)}

    def around(self, bank: str, past: str, first: str, finished: str) -> tuple[str, str]:
        """Of the topics' bank, the last, what is near the rows (b, m, d) that go round it from some row (1,) on, and that row: near all of them where a
        window begins, near those that the `finished` (1,) new ones are near at a fold, else none. past (b, n, d): the state's."""
        topics, m, slots = self.memory.topics, self.config.memory, self.config.memory.slots
        assert topics is not None
        near = topics.near

        def begin(g: Graph) -> list[str]:
            some = g.op("Min", g.op("Add", finished, g.constant([2 * near])), g.constant([slots]))
            count = g.op("Where", g.op("Equal", "new_chunk", g.constant([3])), some, g.constant([slots]))
            places = self._places(g, g.op("Add", first, g.constant([slots - 2 * near])), g.op("Add", count, g.constant([2 * near])))
            own = g.op("Gather", bank, g.constant(len(m.layers)), axis=1)  # (b, n, d)
            return [topics.around(g, g.op("Gather", own, places, axis=1))]

        def keep(g: Graph) -> list[str]:
            return [g.slice(past, g.constant([0]), g.constant([0]), 1)]  # (b, 0, d)

        shape: list[int | str] = ["batch", "rows_near", self.config.hidden_size]
        (fresh,) = self.graph.either(self._anew(), begin, keep, TensorProto.FLOAT, shape, "memory_around", ("near_anew", "near_as_before"))
        g = self.graph
        return fresh, g.op("Mod", g.op("Add", first, g.constant([slots - near])), g.constant([slots]))

    def _anew(self) -> str:
        """Whether what is read of the bank changes in this call: new_chunk 1 and 3."""
        return self.graph.cast(self.graph.op("Mod", "new_chunk", self.graph.constant([2])), "bool")

    def _places(self, g: Graph, first: str, count: str) -> str:
        """The rows (count,) of a bank from `first` (1,) on, going round."""
        line = g.op("Range", g.constant(0), g.op("Squeeze", count), g.constant(1))
        return g.op("Mod", g.op("Add", line, first), g.constant(self.config.memory.slots))


def stacked(g: Graph, parts: list[str]) -> str:
    """(b, 1, t, d) each -> (b, l, t, d)"""
    return parts[0] if len(parts) == 1 else g.op("Concat", *parts, axis=1)
