"""ai.lm2::QLinear, version 1: y = x W^T with W in blocks of 32 numbers of 4 or 8 bits. Packing, what it computes in NumPy, and the operator in ONNX files.

Knows NumPy arrays, GGUF's block layouts and the onnx package; no model, no other operator. A number of W is d q + m; docs/ops.md is the specification.

Axes: o rows of W (outputs), i columns (inputs), k blocks of a row, b bytes of a block (16 or 32), r rows of x.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ...models.errors import LM2Error
from . import DOMAIN

if TYPE_CHECKING:
    import onnx

NAME, BLOCK = "QLinear", 32
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
    """W (o, i) as QLinear takes it. q: uint8 (o, k, 16) for 4 bits, number j in the low half of byte j and number j + 16 in the high half, or int8 (o, k, 32).
    d: float16 (o, k). m: float16 (o, k), or (1, 1) for one minimum everywhere, 0 where there is none."""

    q: np.ndarray
    d: np.ndarray
    m: np.ndarray

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
    return QMatrix(np.ascontiguousarray(q), halves[0], halves[1] if m is not None else np.zeros((1, 1), np.float16))


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
    numbers = unpacked(blocks[..., start:] if bits == 4 else blocks[..., start:].view(np.int8))
    if kind == "Q4_1":
        m: np.ndarray | None = head[..., 1]  # (o, k)
    else:
        m = head[..., 0].astype(np.float32) * -8 if kind == "Q4_0" else None  # (o, k)
    return pack(numbers, head[..., 0], m, bits)


def unpacked(q: np.ndarray) -> np.ndarray:
    """The numbers (o, k, 32) of q, int16."""
    wide = q.astype(np.int16)  # (o, k, b)
    return np.concatenate([wide & 15, wide >> 4], -1) if q.dtype == np.uint8 else wide


def values(w: QMatrix) -> np.ndarray:
    """W in float64, exact: (o, i)."""
    blocks = unpacked(w.q) * w.d.astype(np.float64)[..., None] + w.m.astype(np.float64)[..., None]  # (o, k, 32)
    return blocks.reshape(len(w.q), -1)


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
    d, m = (np.broadcast_to(a, w.q.shape[:2]).astype(np.float32) for a in (w.d, w.m))  # (o, k)
    q = unpacked(w.q).astype(np.int64)  # (o, k, 32)
    sums = np.zeros((*x.shape[:-1], len(q)), np.float32)  # (.., o)
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

    One body for both bits: a byte's low and high half are joined, and the first 32 numbers are kept. With 8 bits the low half is all of it. ONNX
    Runtime holds every constant on the way to W in memory while it folds them, so what can be done on bytes is done there.
    """
    from onnx import AttributeProto, TensorProto, helper

    bits = helper.make_node("Constant", [], ["bits"])
    bits.attribute.append(AttributeProto(name="value_int", type=AttributeProto.INT, ref_attr_name="bits"))
    ints = {"eight": 8, "ones": 255}
    lists = {"first": [0], "last": [-1], "block": [BLOCK], "middle": [1]}
    nodes = [
        *(helper.make_node("Constant", [], [name], value_int=number) for name, number in ints.items()),
        *(helper.make_node("Constant", [], [name], value_ints=numbers) for name, numbers in lists.items()),
        bits,
        helper.make_node("Sub", ["eight", "bits"], ["fewer"]),
        helper.make_node("Cast", ["fewer"], ["shift"], to=TensorProto.UINT8),  # 4 or 0
        helper.make_node("Cast", ["ones"], ["all_bits"], to=TensorProto.UINT8),
        helper.make_node("BitShift", ["all_bits", "shift"], ["mask"], direction="RIGHT"),
        helper.make_node("Cast", ["q"], ["bytes"], to=TensorProto.UINT8),
        helper.make_node("BitwiseAnd", ["bytes", "mask"], ["low"]),
        helper.make_node("BitShift", ["bytes", "shift"], ["high"], direction="RIGHT"),
        helper.make_node("Concat", ["low", "high"], ["halves"], axis=-1),
        helper.make_node("Slice", ["halves", "first", "block", "last"], ["unsigned"]),  # (o, k, 32)
        helper.make_node("Transpose", ["unsigned"], ["columns"], perm=[1, 2, 0]),  # (k, 32, o)
        helper.make_node("Cast", ["columns"], ["signed"], to=TensorProto.INT8),
        helper.make_node("Cast", ["signed"], ["numbers"], to=TensorProto.FLOAT),
        *_wide("d"),
        *_wide("m"),
        helper.make_node("Mul", ["numbers", "wide_d"], ["scaled"]),
        helper.make_node("Add", ["scaled", "wide_m"], ["blocks"]),
        helper.make_node("Shape", ["d"], ["outputs"], start=0, end=1),
        helper.make_node("Concat", ["last", "outputs"], ["flat"], axis=0),
        helper.make_node("Reshape", ["blocks", "flat"], ["w"]),  # (32 k, o)
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    text = "x W^T, W in blocks of 32 numbers d q + m of 4 or 8 bits"
    imports = [helper.make_opsetid("", opset)]
    return helper.make_function(DOMAIN, NAME, list(INPUTS), ["y"], nodes, imports, attributes=["bits"], doc_string=text)


def _wide(name: str) -> "list[onnx.NodeProto]":
    """d or m (o, k) in float32, (k, 1, o)."""
    from onnx import TensorProto, helper

    return [
        helper.make_node("Cast", [name], [f"float_{name}"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", [f"float_{name}"], [f"turned_{name}"], perm=[1, 0]),
        helper.make_node("Unsqueeze", [f"turned_{name}", "middle"], [f"wide_{name}"]),
    ]


def node(x: str, q: str, d: str, m: str, y: str, bits: int, name: str = "") -> "onnx.NodeProto":
    """The node, by the names of its inputs and output in the graph. The model imports the domain and carries `function(...)`."""
    from onnx import helper

    return helper.make_node(NAME, [x, q, d, m], [y], name=name or None, domain=DOMAIN, bits=bits)
