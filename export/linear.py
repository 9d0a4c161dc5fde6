"""A model's matrices as nodes, in the precision asked for: linear layers, the embedding and the head. Knows weights by name.

A matrix comes some rows at a time and is written so, but for one that is stored as columns: that is put together in the type it is stored in.

Axes: b batch, t positions, i inputs, o outputs, v vocabulary, d hidden, k blocks of a row; n tiles of 16 outputs (ops/qlinear.py), c fours of its numbers.
"""

from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np
from onnx import TensorProto

from ..models.errors import ConvertError
from .blocks import joined_minima, to_qparts
from .graph import CONTRIB, Graph
from .offsets import OffsetBlocks, pairs, to_offset_blocks
from .ops import DOMAIN, qlinear
from .ops.qlinear import PackError
from .options import BLOCK, Options
from .quantize import Blocks, nbits, packed_int4, refined, to_blocks
from .weights import Weights

ACCURACY = 4  # MatMulNBits: round the inputs of a block to int8 and multiply whole numbers
HALF_MAX = float(np.finfo(np.float16).max)
T = TypeVar("T", Blocks, OffsetBlocks)


class Matrices:
    """Adds a model's matrices to a graph. Activations are `dtype`; a matrix marked wide takes and gives float32."""

    def __init__(self, weights: Weights, options: Options):
        self.weights, self.options = weights, options
        self.dtype = "float16" if options.half else "float32"
        self.quantized: dict[int, int] = {}
        self._with_sums: dict[tuple[int, str], str] = {}
        self._filled_up: dict[tuple[int, str], str] = {}

    def linear(self, g: Graph, x: str, *names: str, wide: bool = False, bias: np.ndarray | None = None) -> str:
        """x (b, t, i) times the matrices `names`, as one, plus their biases (or `bias`): (b, t, o)."""
        own = self.weights.biases(names) if bias is None else bias
        joint = names[0] if len(names) == 1 else names[0] + "".join("+" + n.rsplit(".", 1)[-1] for n in names[1:])
        short = joint.rsplit(".", 1)[-1]
        bits = 0 if wide else self.options.bits_of(names[0])
        y = self._quantised(g, x, joint, names, bits) if bits else self._plain(g, x, joint, names, wide)
        if own is not None:
            dtype = "float32" if wide else self.dtype
            largest = float(np.abs(own).max(initial=0.0))
            y = g.op("Add", y, g.store.add(f"{joint}.bias", self._fits(joint, own, dtype, largest)), name=f"{short}.bias")
        return y

    def vector(self, g: Graph, name: str) -> str:
        """A norm's weight or the like, in float32."""
        return g.store.add(name, self.weights[name])

    def embedding(self, g: Graph, ids: str) -> str:
        """Rows of the embedding for ids (b, t): (b, t, d). A tied head multiplies by the same initializers."""
        base = "model.embed_tokens"
        bits = self.options.bits_of(base)
        if not bits:
            table = g.store.stream(f"{base}.weight", self._fitting(base, (base,), self.dtype))
            return g.op("Gather", table, ids, name="embed")
        if self.options.qlinear:
            minima = self._keep(g, base, (base,), bits)
            return self._tile_rows(g, base, ids, minima, self._inputs(base))
        portable = self.options.portable  # signed numbers as they are; MatMulNBits wants them unsigned
        scales: list[np.ndarray] = []
        blocks = _noted(self._blocks((base,), bits), scales)
        q = g.store.stream(f"{base}.q", (b.q if portable else nbits(b, bits) for b in blocks))  # (v, k, 32)
        s = g.store.add(f"{base}.scale", np.concatenate(scales))  # (v, k)
        x = g.cast(g.op("Gather", q, ids, name="embed"), "float32")  # (b, t, k, 32)
        x = x if portable else g.op("Sub", x, g.constant(128.0, "float32"))
        return self._columns(g, g.op("Mul", x, self._of_blocks(g, s, ids)), self.weights.joint_shape((base,))[1])

    def _tile_rows(self, g: Graph, base: str, ids: str, minima: bool, columns: int) -> str:
        """Rows `ids` (b, t) of a matrix that was kept as QLinear takes it, q (n, k, 8, 16, 4) and d, m (n, k, 16): (b, t, d). They are taken out number by
        number of a tile: whole tiles would be 16 times as much, and the table in another shape would be in memory twice."""
        count, far = -(-columns // BLOCK), 1 << 62
        k, c = np.meshgrid(np.arange(count), np.arange(BLOCK // 4), indexing="ij")  # (k, c)
        zero = np.zeros_like(k)
        fours = g.constant(np.stack([zero, k, c, zero], -1).reshape(-1, 4))  # (8 k, 4)
        blocks = g.constant(np.stack([zero, k, zero], -1)[:, 0])  # (k, 3)
        place = g.op("Unsqueeze", ids, g.constant([-2, -1]))  # (b, t, 1, 1)
        place = g.op("Div", place, g.constant([qlinear.TILE, far, far, 1]))  # (b, t, 1, 4): tile, 0, 0, id
        place = g.op("Mod", place, g.constant([far, far, far, qlinear.TILE]))  # (b, t, 1, 4): tile, 0, 0, row of the tile
        in_q = g.op("Add", place, fours)  # (b, t, 8 k, 4)
        in_d = g.op("Add", g.op("Gather", place, g.constant([0, 1, 3]), axis=-1), blocks)  # (b, t, k, 3)

        def halves(table: str) -> str:
            return g.op("Unsqueeze", g.cast(g.op("GatherND", table, in_d), "float32"), g.constant([-1]))  # (b, t, k, 1)

        x = g.cast(g.op("GatherND", f"{base}.q", in_q, name="embed"), "float32")  # (b, t, 8 k, 4)
        x = g.op("Mul", g.reshape(x, 0, 0, count, BLOCK), halves(f"{base}.d"))
        x = g.op("Add", x, halves(f"{base}.m")) if minima else x
        return self._columns(g, x, columns)

    def _of_blocks(self, g: Graph, table: str, ids: str) -> str:
        """A number (b, t, k, 1) for each block of the rows `ids` (b, t), from a table (v, k) of halves."""
        return g.op("Unsqueeze", g.cast(g.op("Gather", table, ids), "float32"), g.constant([-1]))

    def _columns(self, g: Graph, blocks: str, columns: int) -> str:
        """blocks (b, t, k, 32) as rows of so many columns: (b, t, d)."""
        x = g.reshape(blocks, 0, 0, -1)  # (b, t, 32 k)
        return x if columns % BLOCK == 0 else g.slice(x, g.constant([0]), g.constant([columns]), 2)

    def head(self, g: Graph, x: str, tied: bool, width: int, vocabulary: int) -> str:
        """Logits of x (b, t, d): (b, t, v) float32."""
        base = "model.embed_tokens" if tied else "lm_head"
        bits = self.options.bits_of(base)
        if bits and tied and self.options.qlinear:
            return self._product(g, x, base, "head", width, vocabulary, bits)
        twice = bits > 0 and not (self.options.portable or self.options.qlinear) and width % BLOCK == 0
        if twice:
            x = g.op("Concat", x, self._remainder(g, x, width), axis=1)  # (b, 2 t, d): the matrix is read once
        if not tied:
            y = self.linear(g, x, "lm_head")
        elif bits and not self.options.portable:
            y = self._nbits(g, x, base, "head", width, vocabulary, bits)
        elif bits:
            w = g.cast(f"{base}.q", "float32")  # (v, k, 32)
            w = g.op("Mul", w, g.op("Unsqueeze", g.cast(f"{base}.scale", "float32"), g.constant([-1])))
            w = g.slice(g.reshape(w, 0, -1), g.constant([0]), g.constant([width]), 1)  # (v, d)
            y = g.op("MatMul", x, g.op("Transpose", w, perm=[1, 0]), name="head")
        else:
            flat = g.reshape(x, -1, width)
            y = g.op("Gemm", flat, f"{base}.weight", transB=1, name="head")  # one table in file and memory
            first = g.op("Shape", x, start=0, end=2)
            y = g.op("Reshape", y, g.op("Concat", first, g.constant([vocabulary]), axis=0))
        if twice:
            y = g.op("Add", *g.ops("Split", y, outputs=2, axis=1, num_outputs=2))
        return g.cast(y, "float32") if self.options.half else y

    def _plain(self, g: Graph, x: str, joint: str, names: tuple[str, ...], wide: bool) -> str:
        dtype = "float32" if wide else self.dtype
        array = self._columns_of(names, self._fitting(joint, names, dtype), np.dtype(dtype))  # (i, o)
        small = wide and self.options.bits > 0 and fits_half(array)
        w = g.store.add(f"{joint}.weight", array.astype(np.float16) if small else array)
        return g.op("MatMul", x, g.cast(w, "float32") if small else w, name=joint.rsplit(".", 1)[-1])

    def _columns_of(self, names: tuple[str, ...], parts: Iterable[np.ndarray], dtype: np.dtype, more: int = 0) -> np.ndarray:
        """What comes some rows (o, i + more) at a time, of matrices `names` (o, i), as columns: (i + more, o)."""
        outputs, inputs = self.weights.joint_shape(names)
        whole = np.empty((inputs + more, outputs), dtype)
        at = 0
        for part in parts:
            whole[:, at : at + len(part)] = part.T
            at += len(part)
        return whole

    def _quantised(self, g: Graph, x: str, joint: str, names: tuple[str, ...], bits: int) -> str:
        short = joint.rsplit(".", 1)[-1]
        if self.options.qlinear:
            self._keep(g, joint, names, bits)
            return self._product(g, x, joint, short, self._inputs(names[0]), self.weights.joint_shape(names)[0], bits)
        if bits == 4 and self._inputs(names[0]) % BLOCK == 0:
            return self._offset(g, x, joint, names)
        outputs, inputs = self.weights.joint_shape(names)
        scales: list[np.ndarray] = []
        blocks = _noted(self._blocks(names, bits), scales)
        if not self.options.portable:
            g.store.stream(f"{joint}.q", (nbits(b, bits) for b in blocks))  # (o, k, 32 bits / 8)
            g.store.add(f"{joint}.scale", np.concatenate(scales))  # (o, k)
            return self._nbits(g, x, joint, short, inputs, outputs, bits)
        whole = self._columns_of(names, (b.q.reshape(len(b.q), -1)[:, :inputs] for b in blocks), np.dtype(np.int8))  # (i, o)
        kind = TensorProto.INT8 if bits == 8 else TensorProto.INT4
        q = g.store.add(f"{joint}.q", whole if bits == 8 else packed_int4(whole), kind, whole.shape)
        s = g.store.add(f"{joint}.scale", np.concatenate(scales).T.astype(np.float32))  # (k, o)
        w = g.op("DequantizeLinear", q, s, axis=0, block_size=BLOCK, name=f"{short}.values")
        return g.op("MatMul", x, w, name=short)

    def _inputs(self, name: str) -> int:
        return self.weights.header.tensors[f"{name}.weight"].shape[1]

    def _keep(self, g: Graph, joint: str, names: tuple[str, ...], bits: int) -> bool:
        """Matrices `names` as QLinear takes them, initializers q, d and m; whether some m is not 0."""
        self.quantized[bits] = self.quantized.get(bits, 0) + len(names)
        d: list[np.ndarray] = []
        m: list[np.ndarray] = []

        def numbers() -> Iterator[np.ndarray]:
            for part in to_qparts(lambda: self.weights.rows(names), bits):
                d.append(part.d)
                m.append(part.m)
                yield part.q

        try:
            g.store.stream(f"{joint}.q", numbers())
        except PackError:
            raise ConvertError(
                f"{self.weights.path}: matrix {names[0]} has values up to {self.weights.largest(names):.3g}, too large for scales in float16: "
                "export with --precision fp32"
            ) from None
        g.store.add(f"{joint}.d", np.concatenate(d))
        minima = joined_minima(m, bits)
        g.store.add(f"{joint}.m", minima)
        return bool(minima.any())

    def _product(self, g: Graph, x: str, joint: str, short: str, inputs: int, outputs: int, bits: int) -> str:
        """x (b, t, i) times a matrix that was kept: (b, t, o)."""
        missing = -inputs % BLOCK
        if missing and (id(g), x) not in self._filled_up:
            self._filled_up[id(g), x] = g.op("Pad", x, g.constant([0, 0, 0, 0, 0, missing]))  # (b, t, 32 k)
        x = self._filled_up[id(g), x] if missing else x
        return g.op(qlinear.NAME, x, *(f"{joint}.{part}" for part in "qdm"), domain=DOMAIN, name=short, bits=bits, rows=outputs)

    def _offset(self, g: Graph, x: str, joint: str, names: tuple[str, ...]) -> str:
        """As `_quantised`, 4-bit blocks with a minimum of their own (offsets.py)."""
        self.quantized[4] = self.quantized.get(4, 0) + len(names)
        short = joint.rsplit(".", 1)[-1]
        x = self._sums_appended(g, x)
        outputs, inputs = self.weights.joint_shape(names)
        columns = inputs + inputs // BLOCK  # those of x and of its block sums
        scales: list[np.ndarray] = []
        zeros: list[np.ndarray] = []
        blocks = _noted((to_offset_blocks(part) for part in self.weights.rows(names)), scales, zeros)
        if not self.options.portable:
            g.store.stream(f"{joint}.q", (pairs(b.q) for b in blocks))
            g.store.add(f"{joint}.scale", np.concatenate(scales))
            g.store.add(f"{joint}.zero", pairs(np.concatenate(zeros)))
            return self._nbits(g, x, joint, short, columns, outputs, 4, f"{joint}.zero")
        rows = (b.q.reshape(len(b.q), -1)[:, :columns] for b in blocks)
        whole = self._columns_of(names, rows, np.dtype(np.uint8), columns - inputs)  # (i + k, o)
        q, zero = (
            g.store.add(f"{joint}.{part}", packed_int4(a), TensorProto.UINT4, a.shape)
            for part, a in (("q", whole), ("zero", np.concatenate(zeros).T))
        )
        s = g.store.add(f"{joint}.scale", np.concatenate(scales).T.astype(np.float32))
        w = g.op("DequantizeLinear", q, s, zero, axis=0, block_size=BLOCK, name=f"{short}.values")
        return g.op("MatMul", x, w, name=short)

    def _sums_appended(self, g: Graph, x: str) -> str:
        """x (b, t, i) with the sums of its blocks: (b, t, i + k). Made once for all matrices that take x."""
        if (id(g), x) in self._with_sums:
            return self._with_sums[id(g), x]
        parts = g.reshape(x, 0, 0, -1, BLOCK)  # (b, t, k, 32)
        sums = g.op("ReduceSum", parts, g.constant([-1]), keepdims=0)
        self._with_sums[id(g), x] = g.op("Concat", x, sums, axis=-1, name="with_sums")
        return self._with_sums[id(g), x]

    def _remainder(self, g: Graph, x: str, width: int) -> str:
        """What MatMulNBits' rounding of x (b, t, d) to int8 leaves over: multiplied as rows of its own, it makes logits nearly exact."""
        blocks = g.reshape(x, 0, 0, width // BLOCK, BLOCK)  # (b, t, k, 32)
        largest = g.op("ReduceMax", g.op("Abs", blocks), g.constant([-1]), keepdims=1)
        scale = g.op("Max", g.op("Mul", largest, g.constant(1 / 127, "float32")), g.constant(1e-30, "float32"))
        near = g.op("Mul", g.op("Round", g.op("Div", blocks, scale)), scale)
        return g.op("Reshape", g.op("Sub", blocks, near), g.op("Shape", x))

    def _nbits(self, g: Graph, x: str, joint: str, short: str, inputs: int, outputs: int, bits: int, *zero: str) -> str:
        scale = g.cast(f"{joint}.scale", "float32")
        return g.op(
            "MatMulNBits", x, f"{joint}.q", scale, *zero, domain=CONTRIB, name=short,
            K=inputs, N=outputs, bits=bits, block_size=BLOCK, accuracy_level=ACCURACY,
        )  # fmt: skip

    def _blocks(self, names: tuple[str, ...], bits: int) -> Iterator[Blocks]:
        """Matrices `names` in blocks, some rows at a time."""
        self.quantized[bits] = self.quantized.get(bits, 0) + len(names)
        loudness = self.weights.loudness(names[0])
        for part in self.weights.rows(names):
            blocks = to_blocks(part, bits)
            yield blocks if loudness is None else refined(blocks, part, loudness)

    def _fitting(self, name: str, names: tuple[str, ...], dtype: str) -> Iterator[np.ndarray]:
        """Matrices `names`, together `name`, in `dtype`, some rows at a time."""
        for part in self.weights.rows(names):
            largest = float(np.abs(part).max(initial=0.0)) if dtype == "float16" else 0.0
            yield self._fits(name, part, dtype, largest if largest <= HALF_MAX else self.weights.largest(names))

    def _fits(self, name: str, array: np.ndarray, dtype: str, largest: float) -> np.ndarray:
        """`array` in `dtype`. Raises ConvertError where the `largest` magnitude of `name` is too much for float16."""
        if dtype == "float32":
            return array
        if largest > HALF_MAX:
            raise ConvertError(f"--precision fp16 cannot hold tensor {name}: its largest value is {largest:.3g}: export fp32 or int8")
        return array.astype(np.float16)


def _noted(parts: Iterable[T], scales: list[np.ndarray], zeros: list[np.ndarray] | None = None) -> Iterator[T]:
    """The parts of a matrix as they come; their scales and zero points, which are small, stay in the lists."""
    for part in parts:
        scales.append(part.scales)
        if zeros is not None and isinstance(part, OffsetBlocks):
            zeros.append(part.zeros)
        yield part


def fits_half(array: np.ndarray) -> bool:
    """Whether float16 holds every value of a float32 array exactly: the file may then store half the bytes, and a runtime widens them at load."""
    with np.errstate(over="ignore"):
        return bool((array.astype(np.float16).astype(np.float32) == array).all())
