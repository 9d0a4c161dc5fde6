"""What a call does first when rows enter the bank, cell gated: the rows of the positions since the last fold, and K and V of what is read anew.

Both stand in an If, since all other calls do neither. A row is read by nobody before the next fold, so its gates are computed
here for all positions at once: their matrices are read once a fold and not once a token. Where each sequence of a batch stands at a position of its own, p and
m are of the one that has most; what the others have not is as it was.

Axes: b batch, p positions since the last fold, m rows read anew, n rows of a bank, d hidden, l banks, h memory heads, e head width, w what a position keeps.
"""

from onnx import TensorProto

from ..models.config import LM2Config
from .attention import Place
from .graph import Graph
from .memory import MemoryLayers

Pairs = dict[int, tuple[str, str]]


class Border:
    """Adds both parts to a graph. banks: (b, l, n, d)."""

    def __init__(self, graph: Graph, config: LM2Config, memory: MemoryLayers):
        self.graph, self.config, self.memory = graph, config, memory

    def place(self, place: Place, finished: str) -> None:
        """Where the call stands, and how many positions (b,) or (1,) enter the bank first. Before anything else."""
        self._place, self._finished = place, finished
        self._most = place.last(self.graph, finished)  # (1,)

    def rows(self, writes: str, bank: str, first: str) -> str:
        """The rows (b, l, p, d) of the positions that enter, whose places go round the bank from row `first` (b,) or (1,) on; with 0 of them none.
        writes (b, l, T, w)."""
        m, finished, most = self.config.memory, self._finished, self._most

        def rewrite(g: Graph) -> list[str]:
            made = g.slice(writes, g.constant([0]), most, 2)  # (b, l, p, w)
            old = self._taken(g, bank, m.banks, first, most)  # (b, l, p, d)
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
            whole = stacked(g, rows)
            if not self._place.each:
                return [whole]
            count = g.op("Unsqueeze", finished, g.constant([1, 2, 3]))  # (b, 1, 1, 1)
            line = g.op("Unsqueeze", g.op("Range", g.constant(0), g.op("Squeeze", most), g.constant(1)), g.constant([1]))  # (p, 1)
            return [g.op("Where", g.op("Less", line, count), whole, old)]

        def nothing(g: Graph) -> list[str]:
            return [g.slice(bank, g.constant([0]), g.constant([0]), 2)]  # (b, l, 0, d)

        some = self.graph.cast(most, "bool")
        shape: list[int | str] = ["batch", m.banks, "rows_written", self.config.hidden_size]
        labels = ("rows_enter", "nothing_enters")
        (rows,) = self.graph.either(some, rewrite, nothing, TensorProto.FLOAT, shape, "memory_rows", labels)
        return rows

    def reads(self, bank: str, past: Pairs, kind: int, first: str) -> Pairs:
        """K and V (b, h, m, e) of each memory layer, of the rows that go round the bank from row `first` (b,) or (1,) on: all of them where a window
        begins, the new ones at a fold (with `keys: pair` the one behind them too), else none. past: the state's, of type `kind`."""
        m, layers = self.config.memory, list(past)

        def begin(g: Graph) -> list[str]:
            made: list[str] = []
            fold = g.op("Equal", "new_chunk", g.constant([3]))
            some = g.op("Min", g.op("Add", self._most, g.constant([1])), g.constant([m.slots])) if self.memory.pair else self._most
            count = g.op("Max", g.op("Where", fold, some, g.constant([m.slots])), g.constant([1]))
            start = first
            if self.memory.pair:
                start, count = g.op("Add", first, g.constant([m.slots - 1])), g.op("Add", count, g.constant([1]))
            rows = self._taken(g, bank, m.banks, start, count)  # (b, l, m or m + 1, d)
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

    def around(self, bank: str, past: str, first: str) -> tuple[str, str]:
        """Of the topics' bank, the last, what is near the rows (b, m, d) that go round it from some row (b,) or (1,) on, and that row: near all of them where a
        window begins, near those that the new ones are near at a fold, else none. past (b, n, d): the state's."""
        topics, m, slots = self.memory.topics, self.config.memory, self.config.memory.slots
        assert topics is not None
        near = topics.near

        def begin(g: Graph) -> list[str]:
            some = g.op("Min", g.op("Add", self._most, g.constant([2 * near])), g.constant([slots]))
            count = g.op("Where", g.op("Equal", "new_chunk", g.constant([3])), some, g.constant([slots]))
            own = g.op("Gather", bank, g.constant([len(m.layers)]), axis=1)  # (b, 1, n, d)
            start = g.op("Add", first, g.constant([slots - 2 * near]))
            rows = self._taken(g, own, 1, start, g.op("Add", count, g.constant([2 * near])))  # (b, 1, m + 2 near, d)
            return [topics.around(g, g.op("Squeeze", rows, g.constant([1])))]

        def keep(g: Graph) -> list[str]:
            return [g.slice(past, g.constant([0]), g.constant([0]), 1)]  # (b, 0, d)

        shape: list[int | str] = ["batch", "rows_near", self.config.hidden_size]
        (fresh,) = self.graph.either(self._anew(), begin, keep, TensorProto.FLOAT, shape, "memory_around", ("near_anew", "near_as_before"))
        g = self.graph
        return fresh, g.op("Mod", g.op("Add", first, g.constant([slots - near])), g.constant([slots]))

    def _anew(self) -> str:
        """Whether what is read of the bank changes in this call: new_chunk 1 and 3."""
        return self.graph.cast(self.graph.op("Mod", "new_chunk", self.graph.constant([2])), "bool")

    def _taken(self, g: Graph, banks: str, l: int, first: str, count: str) -> str:
        """The rows (b, l, count, d) of banks (b, l, n, d) from `first` (b,) or (1,) on, going round."""
        slots = self.config.memory.slots
        line = g.op("Range", g.constant(0), g.op("Squeeze", count), g.constant(1))
        if not self._place.each:
            return g.op("Gather", banks, g.op("Mod", g.op("Add", line, first), g.constant(slots)), axis=2)
        places = g.op("Mod", g.op("Add", line, g.op("Unsqueeze", first, g.constant([1, 2]))), g.constant(slots))  # (b, 1, count)
        every = g.op("Mul", self._place.batch, g.constant([l]))
        begins = g.op("Range", g.constant(0), g.op("Squeeze", g.op("Mul", every, g.constant([slots]))), g.constant(slots))  # (b l,)
        index = g.op("Add", g.reshape(begins, -1, l, 1), places)  # (b, l, count)
        return g.op("Gather", g.reshape(banks, -1, self.config.hidden_size), index, axis=0)


def stacked(g: Graph, parts: list[str]) -> str:
    """(b, 1, t, d) each -> (b, l, t, d)"""
    return parts[0] if len(parts) == 1 else g.op("Concat", *parts, axis=1)
