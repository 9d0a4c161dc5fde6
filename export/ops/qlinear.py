"""ai.lm2::QLinear, version 2: y = x W^T with W in blocks of 32 numbers of 4 or 8 bits. Packing, what it computes in NumPy, and the operator in ONNX files.

Knows NumPy arrays, GGUF's block layouts and the onnx package; no model, no other operator. A number of W is d q + m; docs/ops.md is the specification.

Axes: o rows of W (outputs), i columns (inputs), k blocks of a row, b bytes of a block (16 or 32), t tiles of 16 outputs, v vectors of a tile's block (b / 4).
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ...models.errors import LM2Error
from . import DOMAIN

if TYPE_CHECKING:
    import onnx

NAME, VERSION = "QLinear", 2
BLOCK, TILE = 32, 16
INPUTS = ("x", "q", "d", "m")
GGUF_BLOCKS = {"Q4_0": (18, 4), "Q4_1": (20, 4), "Q8_0": (34, 8)}
"""Bytes of a block and bits of a number of the GGUF types that can be packed."""
MOST = 32639
"""The largest rounded input: 127 * 256 + 127."""
LEAST = np.float32(2.0**-100)
"""A block of x whose largest magnitude is below it counts as zeros."""


class PackError(LM2Error, ValueError):
    """Numbers, scales or minima that QLinear's layout does not hold."""


class QMatrix(NamedTuple):
    """W (o, i) as QLinear takes it, 16 outputs together and 4 bytes of each side by side. q: uint8 (t, k, 4, 16, 4) for 4 bits, or int8 (t, k, 8, 16, 4): byte 4 v + c of
    a block of output 16 t + n stands at [t, k, v, n, c]. With 4 bits byte j has number j in its low half and number j + 16 in its high half. d: float16
    (t, k, 16). m: the same, or (1, 1, 1) for one minimum everywhere, 0 where there is none. Outputs past the last one are zeros."""

    q: np.ndarray
    d: np.ndarray
    m: np.ndarray
    outputs: int

    @property
    def bits(self) -> int:
        return 4 if self.q.dtype == np.uint8 else 8


def pack(numbers: np.ndarray, d: np.ndarray, m: np.ndarray | None, bits: int) -> QMatrix:
    """numbers (o, k, 32), 0 .. 15 or -128 .. 127; d (o, k) and m (o, k) or None. Nothing is rounded: raises PackError for what does not fit."""
    low, high = (0, 15) if bits == 4 else (-128, 127)
    if bits not in (4, 8) or numbers.ndim != 3 or numbers.shape[-1] != BLOCK or 0 in numbers.shape:
        raise PackError(f"{NAME}: numbers {numbers.shape} with {bits} bits; give (outputs, blocks, {BLOCK}) and 4 or 8 bits")
    if numbers.min() < low or numbers.max() > high or not (numbers.dtype.kind in "iu" or np.array_equal(numbers, np.rint(numbers))):
        raise PackError(
            f"{NAME}: numbers of {bits} bits are whole and from {low} to {high}; these go from {numbers.min()} to {numbers.max()}"
        )
    halves = [_half(what, a, numbers.shape[:2]) for what, a in (("scales", d), ("minima", m)) if a is not None]
    if bits == 4:
        small = numbers.astype(np.uint8)  # (o, k, 32)
        q = small[..., :16] | (small[..., 16:] << 4)  # (o, k, b)
    else:
        q = numbers.astype(np.int8)  # (o, k, b)
    least = _in_tiles(halves[1]) if m is not None else np.zeros((1, 1, 1), np.float16)
    tiles = _in_tiles(q)  # (t, k, 16, b)
    q = tiles.reshape(*tiles.shape[:-1], -1, 4).swapaxes(2, 3)  # (t, k, v, 16, 4)
    return QMatrix(np.ascontiguousarray(q), _in_tiles(halves[0]), least, len(numbers))


def _in_tiles(rows: np.ndarray) -> np.ndarray:
    """Something of outputs and their blocks, (o, k, ..), as (t, k, 16, ..), the last tile filled up with zeros."""
    padded = np.zeros((-(-len(rows) // TILE) * TILE, *rows.shape[1:]), rows.dtype)
    padded[: len(rows)] = rows
    return np.ascontiguousarray(padded.reshape(-1, TILE, *rows.shape[1:]).swapaxes(1, 2))


def _of_outputs(tiles: np.ndarray, outputs: int) -> np.ndarray:
    """`_in_tiles` undone: (o, k, ..)."""
    rows = tiles.swapaxes(1, 2)  # (t, 16, k, ..)
    return rows.reshape(-1, *rows.shape[2:])[:outputs]


def _half(what: str, given: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    with np.errstate(over="ignore"):
        half = np.ascontiguousarray(given, np.float16)  # (o, k)
    if half.shape != shape or not np.isfinite(half).all() or not np.array_equal(half.astype(np.float64), given):
        raise PackError(f"{NAME}: {what} {half.shape} must be finite float16 numbers in the shape {shape}")
    return half


def from_gguf(raw: bytes, kind: str, rows: int) -> QMatrix:
    """The blocks of a GGUF tensor of `rows` rows, nothing rounded: Q4_1 is d q + m, Q4_0 is d q - 8 d, Q8_0 is d q. Raises PackError."""
    if kind not in GGUF_BLOCKS:
        raise PackError(f"{NAME}: GGUF type {kind}; {', '.join(GGUF_BLOCKS)} can be packed")
    size, bits = GGUF_BLOCKS[kind]
    if rows < 1 or len(raw) == 0 or len(raw) % (rows * size):
        raise PackError(f"{NAME}: {len(raw)} bytes are no {rows} rows of {kind} blocks of {size} bytes")
    blocks = np.frombuffer(raw, np.uint8).reshape(rows, -1, size)  # (o, k, bytes)
    start = 4 if kind == "Q4_1" else 2
    head = np.ascontiguousarray(blocks[..., :start]).view("<f2").astype(np.float16)  # (o, k, 1 or 2)
    numbers = _numbers(blocks[..., start:] if bits == 4 else blocks[..., start:].view(np.int8))
    if kind == "Q4_1":
        m: np.ndarray | None = head[..., 1]  # (o, k)
    else:
        m = head[..., 0].astype(np.float32) * -8 if kind == "Q4_0" else None  # (o, k)
    return pack(numbers, head[..., 0], m, bits)


def _numbers(q: np.ndarray) -> np.ndarray:
    """The numbers (o, k, 32) in bytes (o, k, b), int16."""
    wide = q.astype(np.int16)  # (o, k, b)
    return np.concatenate([wide & 15, wide >> 4], -1) if q.dtype == np.uint8 else wide


def unpacked(w: QMatrix) -> np.ndarray:
    """The numbers (o, k, 32) of W, int16."""
    tiles = w.q.swapaxes(2, 3)  # (t, k, 16, v, 4)
    return _numbers(_of_outputs(tiles.reshape(*tiles.shape[:3], -1), w.outputs))


def scales(w: QMatrix) -> tuple[np.ndarray, np.ndarray]:
    """d and m of every block, float16 (o, k)."""
    d = _of_outputs(w.d, w.outputs)  # (o, k)
    return d, np.broadcast_to(w.m[0], d.shape) if w.m.size == 1 else _of_outputs(w.m, w.outputs)


def values(w: QMatrix) -> np.ndarray:
    """W in float64, exact: (o, i)."""
    d, m = (half.astype(np.float64)[..., None] for half in scales(w))  # (o, k, 1)
    return (unpacked(w) * d + m).reshape(w.outputs, -1)


def rounded(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x float32 (.., i) as whole numbers int64 (.., k, 32) and steps float32 (.., k): what the kernel multiplies by in x's place."""
    blocks = x.reshape(*x.shape[:-1], x.shape[-1] // BLOCK, BLOCK)  # (.., k, 32)
    largest = np.abs(blocks).max(-1)  # (.., k)
    finite = np.isfinite(largest)  # (.., k)
    counts = finite & (largest >= LEAST)  # (.., k)
    inverse = np.divide(np.float32(MOST), largest, out=np.zeros_like(largest), where=counts)  # (.., k)
    scaled = np.where(finite[..., None], blocks, np.float32(0)) * inverse[..., None]  # (.., k, 32)
    steps = np.where(counts, largest / np.float32(MOST), np.where(finite, np.float32(0), np.float32(np.nan)))  # (.., k)
    return np.rint(scaled).astype(np.int64), steps.astype(np.float32)


def reference(x: np.ndarray, w: QMatrix) -> np.ndarray:
    """What the kernel computes, bit for bit: whole sums exact, floats in float32 and in this order. x float32 (.., i) -> (.., o)."""
    numbers, steps = rounded(x)  # (.., k, 32), (.., k)
    d, m = (half.astype(np.float32) for half in scales(w))  # (o, k)
    q = unpacked(w).astype(np.int64)  # (o, k, 32)
    sums = np.zeros((*x.shape[:-1], w.outputs), np.float32)  # (.., o)
    with np.errstate(all="ignore"):
        for k in range(q.shape[1]):
            dot = (numbers[..., k, :] @ q[:, k].T).astype(np.float32)  # (.., o)
            least = numbers[..., k, :].sum(-1).astype(np.float32)[..., None] * m[:, k]  # (.., o)
            sums = sums + (dot * d[:, k] + least) * steps[..., k, None]
    return sums


def exact(x: np.ndarray, w: QMatrix) -> np.ndarray:
    """x W^T with x as it is, in float64: (.., o)."""
    return x.astype(np.float64) @ values(w).T


def function(opset: int) -> "onnx.FunctionProto":
    """The model-local function for a model at ONNX opset `opset`, 18 or later (its body must have the model's): W in float32, then MatMul.

    One body for both bits: a byte's low and high half are joined, and a block's first 32 numbers are kept. With 8 bits the low half is all of it. ONNX
    Runtime holds every constant on the way to W in memory while it folds them, so what can be done on bytes is done there.
    """
    from onnx import AttributeProto, TensorProto, helper

    def attribute(name: str) -> "onnx.NodeProto":
        made = helper.make_node("Constant", [], [name])
        made.attribute.append(AttributeProto(name="value_int", type=AttributeProto.INT, ref_attr_name=name))
        return made

    ints = {"eight": 8, "ones": 255}
    lists = {"zero": [0], "one": [1], "tile": [TILE], "begin": [0, 0], "axes": [1, 2], "keep_any": [0, -1], "block": [BLOCK]}
    nodes = [
        *(helper.make_node("Constant", [], [name], value_int=number) for name, number in ints.items()),
        *(helper.make_node("Constant", [], [name], value_ints=numbers) for name, numbers in lists.items()),
        attribute("bits"),
        attribute("rows"),
        helper.make_node("Reshape", ["rows", "one"], ["last"]),
        helper.make_node("Sub", ["eight", "bits"], ["fewer"]),
        helper.make_node("Cast", ["fewer"], ["shift"], to=TensorProto.UINT8),  # 4 or 0
        helper.make_node("Cast", ["ones"], ["all_bits"], to=TensorProto.UINT8),
        helper.make_node("BitShift", ["all_bits", "shift"], ["mask"], direction="RIGHT"),
        helper.make_node("Cast", ["q"], ["bytes"], to=TensorProto.UINT8),
        helper.make_node("BitwiseAnd", ["bytes", "mask"], ["low"]),
        helper.make_node("BitShift", ["bytes", "shift"], ["high"], direction="RIGHT"),
        helper.make_node("Concat", ["low", "high"], ["halves"], axis=2),  # (t, k, 8 or 16, 16, 4)
        helper.make_node("Transpose", ["halves"], ["turned"], perm=[1, 2, 4, 0, 3]),  # (k, 8 or 16, 4, t, 16)
        helper.make_node("Shape", ["d"], ["tiles"], start=0, end=1),
        helper.make_node("Mul", ["tiles", "tile"], ["padded"]),
        helper.make_node("Concat", ["keep_any", "padded"], ["in_blocks"], axis=0),
        helper.make_node("Reshape", ["turned", "in_blocks"], ["unsigned"]),  # (k, 32 or 64, 16 t)
        helper.make_node("Concat", ["block", "last"], ["end"], axis=0),
        helper.make_node("Slice", ["unsigned", "begin", "end", "axes"], ["columns"]),  # (k, 32, o)
        helper.make_node("Cast", ["columns"], ["signed"], to=TensorProto.INT8),
        helper.make_node("Cast", ["signed"], ["numbers"], to=TensorProto.FLOAT),
        *_wide("d"),
        *_wide("m"),
        helper.make_node("Mul", ["numbers", "wide_d"], ["scaled"]),
        helper.make_node("Add", ["scaled", "wide_m"], ["blocks"]),
        helper.make_node("Flatten", ["blocks"], ["w"], axis=2),  # (32 k, o)
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    text = "x W^T, W in blocks of 32 numbers d q + m of 4 or 8 bits, in tiles of 16 outputs"
    imports = [helper.make_opsetid("", opset)]
    return helper.make_function(DOMAIN, NAME, list(INPUTS), ["y"], nodes, imports, attributes=["bits", "rows"], doc_string=text)


def _wide(name: str) -> "list[onnx.NodeProto]":
    """d or m (t, k, 16) in float32, (k, 1, o); one minimum (1, 1, 1) stays that."""
    from onnx import TensorProto, helper

    return [
        helper.make_node("Transpose", [name], [f"turned_{name}"], perm=[1, 0, 2]),  # (k, t, 16)
        helper.make_node("Flatten", [f"turned_{name}"], [f"padded_{name}"], axis=1),  # (k, 16 t)
        helper.make_node("Slice", [f"padded_{name}", "zero", "last", "one"], [f"half_{name}"]),  # (k, o)
        helper.make_node("Cast", [f"half_{name}"], [f"float_{name}"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", [f"float_{name}", "one"], [f"wide_{name}"]),
    ]


def node(x: str, q: str, d: str, m: str, y: str, bits: int, rows: int, name: str = "") -> "onnx.NodeProto":
    """The node, by the names of its inputs and output in the graph; rows: those of W. The model imports VERSION of the domain and carries `function(...)`."""
    from onnx import helper

    return helper.make_node(NAME, [x, q, d, m], [y], name=name or None, domain=DOMAIN, bits=bits, rows=rows)
