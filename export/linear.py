"""A model's matrices as nodes, in the precision asked for: linear layers, the embedding and the head. Knows weights by name.

Axes: b batch, t positions, i inputs, o outputs, v vocabulary, d hidden, k blocks of a row.
"""

from pathlib import Path
from typing import BinaryIO

import numpy as np
from onnx import TensorProto

from ..models.errors import ConvertError
from ..models.layout import ModelFolder
from ..models.tensorfile import read_tensor, to_float32
from .blocks import to_qmatrix
from .graph import CONTRIB, Graph
from .offsets import pairs, to_offset_blocks
from .ops import DOMAIN, qlinear
from .ops.qlinear import PackError
from .options import BLOCK, Options
from .quantize import Blocks, nbits, packed_int4, refined, to_blocks

ACCURACY = 4  # MatMulNBits: round the inputs of a block to int8 and multiply whole numbers


class Weights:
    """A model folder's tensors, float32, read one at a time."""

    def __init__(self, folder: ModelFolder, f: BinaryIO):
        self.folder, self.file = folder, f
        self.header = folder.header
        self.path: Path = folder.weights

    def __contains__(self, name: str) -> bool:
        return name in self.header.tensors

    def __getitem__(self, name: str) -> np.ndarray:
        info = self.header.tensors[name]
        array = to_float32(read_tensor(self.file, info), info.dtype)
        if not np.isfinite(array).all():
            raise ConvertError(f"{self.path}: tensor {name} has values that are not finite: convert or pull the model again")
        return array

    def loudness(self, name: str) -> np.ndarray | None:
        """Where the last block of matrix `name` is of a few columns (loud.py): what each counts."""
        return None

    def rows(self, names: tuple[str, ...]) -> np.ndarray:
        """Matrices (o, i), by name without `.weight`, one below the other."""
        return np.concatenate([self[f"{n}.weight"] for n in names]) if len(names) > 1 else self[f"{names[0]}.weight"]

    def biases(self, names: tuple[str, ...]) -> np.ndarray | None:
        """Their biases side by side (o,), zeros for one that has none; None when none has."""
        if not any(f"{n}.bias" in self for n in names):
            return None
        rows = [(self.header.tensors[f"{n}.weight"].shape[0], f"{n}.bias") for n in names]
        return np.concatenate([self[bias] if bias in self else np.zeros(size, np.float32) for size, bias in rows])


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
            y = g.op("Add", y, g.store.add(f"{joint}.bias", self._fits(joint, own, dtype)), name=f"{short}.bias")
        return y

    def vector(self, g: Graph, name: str) -> str:
        """A norm's weight or the like, in float32."""
        return g.store.add(name, self.weights[name])

    def embedding(self, g: Graph, ids: str) -> str:
        """Rows of the embedding for ids (b, t): (b, t, d). A tied head multiplies by the same initializers."""
        base = "model.embed_tokens"
        bits = self.options.bits_of(base)
        if not bits:
            table = g.store.add(f"{base}.weight", self._fits(base, self.weights[f"{base}.weight"], self.dtype))
            return g.op("Gather", table, ids, name="embed")
        if self.options.qlinear:
            minima = self._keep(g, base, (base,), bits)  # q (v, k, 32), d (v, k)
            x = g.cast(g.op("Gather", f"{base}.q", ids, name="embed"), "float32")  # (b, t, k, 32)
            x = g.op("Mul", x, self._of_blocks(g, f"{base}.d", ids))
            x = g.op("Add", x, self._of_blocks(g, f"{base}.m", ids)) if minima else x
            return self._columns(g, x, self._inputs(base))
        blocks = self._blocks(base, (base,), bits)
        portable = self.options.portable  # signed numbers as they are; MatMulNBits wants them unsigned
        q = g.store.add(f"{base}.q", blocks.q if portable else nbits(blocks, bits))  # (v, k, 32)
        s = g.store.add(f"{base}.scale", blocks.scales)  # (v, k)
        x = g.cast(g.op("Gather", q, ids, name="embed"), "float32")  # (b, t, k, 32)
        x = x if portable else g.op("Sub", x, g.constant(128.0, "float32"))
        return self._columns(g, g.op("Mul", x, self._of_blocks(g, s, ids)), blocks.columns)

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
            return self._product(g, x, base, "head", width, bits)
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
        array = np.ascontiguousarray(self._fits(joint, self.weights.rows(names), "float32" if wide else self.dtype).T)
        small = wide and self.options.bits > 0 and fits_half(array)
        w = g.store.add(f"{joint}.weight", array.astype(np.float16) if small else array)
        return g.op("MatMul", x, g.cast(w, "float32") if small else w, name=joint.rsplit(".", 1)[-1])

    def _quantised(self, g: Graph, x: str, joint: str, names: tuple[str, ...], bits: int) -> str:
        short = joint.rsplit(".", 1)[-1]
        if self.options.qlinear:
            self._keep(g, joint, names, bits)
            return self._product(g, x, joint, short, self._inputs(names[0]), bits)
        if bits == 4 and self._inputs(names[0]) % BLOCK == 0:
            return self._offset(g, x, joint, names)
        blocks = self._blocks(joint, names, bits)
        if not self.options.portable:
            g.store.add(f"{joint}.q", nbits(blocks, bits))  # (o, k, 32 bits / 8)
            g.store.add(f"{joint}.scale", blocks.scales)  # (o, k)
            return self._nbits(g, x, joint, short, blocks.columns, blocks.q.shape[0], bits)
        whole = blocks.q.reshape(blocks.q.shape[0], -1)[:, : blocks.columns].T  # (i, o)
        kind = TensorProto.INT8 if bits == 8 else TensorProto.INT4
        q = g.store.add(f"{joint}.q", whole if bits == 8 else packed_int4(whole), kind, whole.shape)
        s = g.store.add(f"{joint}.scale", blocks.scales.T.astype(np.float32))  # (k, o)
        w = g.op("DequantizeLinear", q, s, axis=0, block_size=BLOCK, name=f"{short}.values")
        return g.op("MatMul", x, w, name=short)

    def _inputs(self, name: str) -> int:
        return self.weights.header.tensors[f"{name}.weight"].shape[1]

    def _keep(self, g: Graph, joint: str, names: tuple[str, ...], bits: int) -> bool:
        """Matrices `names` as QLinear takes them, initializers q (o, k, bytes), d (o, k) and m (o, k) or one 0; whether some m is not 0."""
        self.quantized[bits] = self.quantized.get(bits, 0) + len(names)
        weight = self.weights.rows(names)  # (o, i)
        try:
            made = to_qmatrix(weight, bits)
        except PackError:
            raise ConvertError(
                f"{self.weights.path}: matrix {names[0]} has values up to {np.abs(weight).max():.3g}, too large for scales in float16: "
                "export with --precision fp32"
            ) from None
        for part, array in zip("qdm", made, strict=True):
            g.store.add(f"{joint}.{part}", array)
        return bool(made.m.any())

    def _product(self, g: Graph, x: str, joint: str, short: str, inputs: int, bits: int) -> str:
        """x (b, t, i) times a matrix that was kept: (b, t, o)."""
        missing = -inputs % BLOCK
        if missing and (id(g), x) not in self._filled_up:
            self._filled_up[id(g), x] = g.op("Pad", x, g.constant([0, 0, 0, 0, 0, missing]))  # (b, t, 32 k)
        x = self._filled_up[id(g), x] if missing else x
        return g.op(qlinear.NAME, x, *(f"{joint}.{part}" for part in "qdm"), domain=DOMAIN, name=short, bits=bits)

    def _offset(self, g: Graph, x: str, joint: str, names: tuple[str, ...]) -> str:
        """As `_quantised`, 4-bit blocks with a minimum of their own (offsets.py)."""
        self.quantized[4] = self.quantized.get(4, 0) + len(names)
        blocks, short = to_offset_blocks(self.weights.rows(names)), joint.rsplit(".", 1)[-1]
        x = self._sums_appended(g, x)
        rows = blocks.q.shape[0]
        if not self.options.portable:
            for part, array in (("q", pairs(blocks.q)), ("scale", blocks.scales), ("zero", pairs(blocks.zeros))):
                g.store.add(f"{joint}.{part}", array)
            return self._nbits(g, x, joint, short, blocks.columns, rows, 4, f"{joint}.zero")
        whole = blocks.q.reshape(rows, -1)[:, : blocks.columns].T  # (i + k, o)
        q, zero = (
            g.store.add(f"{joint}.{part}", packed_int4(a), TensorProto.UINT4, a.shape)
            for part, a in (("q", whole), ("zero", blocks.zeros.T))
        )
        s = g.store.add(f"{joint}.scale", blocks.scales.T.astype(np.float32))
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

    def _blocks(self, joint: str, names: tuple[str, ...], bits: int) -> Blocks:
        self.quantized[bits] = self.quantized.get(bits, 0) + len(names)
        weight = self.weights.rows(names)
        blocks, loudness = to_blocks(weight, bits), self.weights.loudness(names[0])
        return blocks if loudness is None else refined(blocks, weight, loudness)

    def _fits(self, name: str, array: np.ndarray, dtype: str) -> np.ndarray:
        if dtype == "float32":
            return array
        largest = float(np.abs(array).max(initial=0.0))
        if largest > float(np.finfo(np.float16).max):
            raise ConvertError(f"--precision fp16 cannot hold tensor {name}: its largest value is {largest:.3g}: export fp32 or int8")
        return array.astype(np.float16)


def fits_half(array: np.ndarray) -> bool:
    """Whether float16 holds every value of a float32 array exactly: the file may then store half the bytes, and a runtime widens them at load."""
    with np.errstate(over="ignore"):
        return bool((array.astype(np.float16).astype(np.float32) == array).all())
