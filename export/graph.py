"""Writing an ONNX graph down node by node. Knows names, nodes and initializers; nothing of models.

A value is its name. Large weights go to a side file as they come, whole or in pieces, so an export holds one piece of them at a time.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
import onnx
from onnx import TensorProto, helper

CONTRIB = "com.microsoft"
ALIGN = 4096
END = (1 << 63) - 1  # of a slice that goes to the end
SIDE_MIN = 1024  # smaller initializers stay in the graph
KINDS = {
    np.dtype("float32"): TensorProto.FLOAT,
    np.dtype("float16"): TensorProto.FLOAT16,
    np.dtype("int64"): TensorProto.INT64,
    np.dtype("int32"): TensorProto.INT32,
    np.dtype("int8"): TensorProto.INT8,
    np.dtype("uint8"): TensorProto.UINT8,
    np.dtype("bool"): TensorProto.BOOL,
}


class Store:
    """The initializers of a model. With `side`, an open file, large ones are written there and referred to as `location`."""

    def __init__(self, side: BinaryIO | None = None, location: str = ""):
        self.tensors: list[TensorProto] = []
        self.names: set[str] = set()
        self._side, self._location = side, location

    def branch(self) -> "Store":
        """The initializers of a branch of the graph: the same names and side file, a list of its own."""
        made = Store(self._side, self._location)
        made.names = self.names
        return made

    def add(self, name: str, array: np.ndarray, kind: int | None = None, shape: tuple[int, ...] | None = None) -> str:
        """Keep `array` under `name`. `kind`, `shape`: for types NumPy does not have, whose bytes `array` holds."""
        array = np.asarray(array, order="C")
        return self._keep(name, [array], array.shape if shape is None else shape, kind)

    def stream(self, name: str, pieces: Iterable[np.ndarray]) -> str:
        """Keep under `name` the array whose rows come in `pieces`, at least one, each (rows, ...). None is held longer than it takes to write it."""
        return self._keep(name, pieces, None, None)

    def _keep(self, name: str, pieces: Iterable[np.ndarray], shape: tuple[int, ...] | None, kind: int | None) -> str:
        assert name not in self.names, name
        self.names.add(name)
        tensor = TensorProto(name=name)
        held: list[bytes] = []  # until there is enough for the side file
        begin, count, rows = -1, 0, 0
        for piece in pieces:
            piece = np.asarray(piece, order="C")
            raw = memoryview(piece.reshape(-1).view(np.uint8)) if piece.size else memoryview(b"")
            count, rows = count + raw.nbytes, rows + (len(piece) if piece.ndim else 0)
            if begin < 0 and (self._side is None or count < SIDE_MIN):
                held.append(raw.tobytes())
                continue
            if begin < 0:
                begin = self._aligned()
                self._write(*held)
                held = []
            self._write(raw)
        tensor.dims.extend((rows, *piece.shape[1:]) if shape is None else shape)
        tensor.data_type = KINDS[piece.dtype] if kind is None else kind
        if begin < 0:
            tensor.raw_data = b"".join(held)
        else:
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in {"location": self._location, "offset": str(begin), "length": str(count)}.items():
                tensor.external_data.add(key=key, value=value)
        self.tensors.append(tensor)
        return name

    def _aligned(self) -> int:
        """Where the side file goes on."""
        assert self._side is not None
        self._side.write(b"\0" * (-self._side.tell() % ALIGN))
        return self._side.tell()

    def _write(self, *parts: bytes | memoryview) -> None:
        assert self._side is not None
        for part in parts:
            self._side.write(part)


class Graph:
    """Nodes of a graph or of a branch of it, in order."""

    def __init__(self, opset: int, store: Store, scope: str = ""):
        self.opset, self.store = opset, store
        self.nodes: list[onnx.NodeProto] = []
        self.domains: set[str] = {""}
        self.kinds: set[str] = set()  # operators in use, in branches too
        self._scope = scope
        self._count: dict[str, int] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Inside, names begin with `name`."""
        before = self._scope
        self._scope = f"{before}{name}."
        try:
            yield
        finally:
            self._scope = before

    def op(self, kind: str, *inputs: str, domain: str = "", name: str = "", **attributes: Any) -> str:
        """Add a node with one output; its name. `name` names node and output for readers of a profile."""
        return self.ops(kind, *inputs, outputs=1, domain=domain, name=name, **attributes)[0]

    def ops(
        self, kind: str, *inputs: str, outputs: int, skip: tuple[int, ...] = (), domain: str = "", name: str = "", **attributes: Any
    ) -> tuple[str, ...]:
        """Add a node with several outputs; their names, empty for those in `skip`, which are optional and not computed."""
        made = self.fresh(name or kind)
        names = (made,) if outputs == 1 else tuple("" if i in skip else f"{made}:{i}" for i in range(outputs))
        self.nodes.append(helper.make_node(kind, list(inputs), list(names), name=made, domain=domain, **attributes))
        self.domains.add(domain)
        self.kinds.add(kind)
        return names

    def either(
        self,
        flag: str,
        then: Callable[["Graph"], list[str]],
        other: Callable[["Graph"], list[str]],
        kind: int,
        shape: list[int | str],
        name: str,
        labels: tuple[str, str],
    ) -> tuple[str, ...]:
        """An If: what `then` or `other` adds to its branch, as values that have one type and shape. flag: bool, one element."""
        graphs, count = [], 0
        for label, fill in zip(labels, (then, other), strict=True):
            branch = Graph(self.opset, self.store.branch(), f"{label}.")
            made = fill(branch)
            infos = [helper.make_tensor_value_info(value, kind, shape) for value in made]
            graphs.append(helper.make_graph(branch.nodes, label, [], infos, branch.store.tensors))
            self.domains |= branch.domains
            self.kinds |= branch.kinds
            count = len(made)
        return self.ops("If", flag, outputs=count, name=name, then_branch=graphs[0], else_branch=graphs[1])

    def outputs_as(self, names: dict[str, str]) -> None:
        """Rename values that nodes of this graph make, wherever they are used: value -> new name."""
        for node in self.nodes:
            for fields in (node.input, node.output):
                for i, value in enumerate(fields):
                    if value in names:
                        fields[i] = names[value]
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    for inner in attribute.g.node:
                        for i, value in enumerate(inner.input):
                            if value in names:
                                inner.input[i] = names[value]

    def constant(self, values: Any, dtype: str = "int64") -> str:
        """A small constant; equal ones are one initializer."""
        array = np.asarray(values, dtype=dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            text = "x".join(map(str, array.reshape(-1)[:4].tolist()))
            self._constants[key] = self.store.add(self._unused(f"const/{array.dtype}/{text}"), array)
        return self._constants[key]

    def fresh(self, kind: str) -> str:
        """A name not yet used in this graph."""
        base = f"{self._scope}{kind}"
        n = self._count.get(base, 0)
        self._count[base] = n + 1
        return base if n == 0 else f"{base}~{n}"

    def _unused(self, name: str) -> str:
        n, made = 0, name
        while made in self.store.names:
            n += 1
            made = f"{name}~{n}"
        return made

    # The handful of moves that every part of the graph is made of.

    def cast(self, x: str, dtype: str) -> str:
        return self.op("Cast", x, to=KINDS[np.dtype(dtype)])

    def size(self, x: str, axis: int) -> str:
        """Length of one axis, int64 (1,)."""
        return self.op("Shape", x, start=axis, end=axis + 1)

    def slice(self, x: str, start: str, end: str, axis: int) -> str:
        """x[start:end] along one axis; start and end are int64 (1,)."""
        return self.op("Slice", x, start, end, self.constant([axis]))

    def reshape(self, x: str, *shape: int) -> str:
        """0 keeps an axis, -1 is what is left."""
        return self.op("Reshape", x, self.constant(shape))

    def heads(self, x: str, heads: int, width: int) -> str:
        """(b, t, h e) -> (b, h, t, e)"""
        return self.op("Transpose", self.reshape(x, 0, 0, heads, width), perm=[0, 2, 1, 3])

    def joined(self, x: str, width: int) -> str:
        """(b, h, t, e) -> (b, t, h e); width is h e"""
        return self.reshape(self.op("Transpose", x, perm=[0, 2, 1, 3]), 0, 0, width)

    def split(self, x: str, sizes: list[int]) -> tuple[str, ...]:
        """Parts of the last axis."""
        return self.ops("Split", x, self.constant(sizes), outputs=len(sizes), axis=-1)
