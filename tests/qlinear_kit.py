"""What the tests of ai.lm2::QLinear share: random matrices, one-node models, the bound of docs/ops.md, libraries and their levels."""

import functools

import numpy as np
from op_kit import kernel_at


def matrix(rng, outputs, blocks, bits, minimum=True):
    """A random QMatrix; some blocks are zero."""
    from lm2.export.ops.qlinear import pack

    shape = (outputs, blocks)
    numbers = rng.integers(0, 16, (*shape, 32)) if bits == 4 else rng.integers(-128, 128, (*shape, 32))
    d = (rng.standard_normal(shape) * 0.01).astype(np.float16)
    d[rng.random(shape) < 0.05] = 0
    return pack(numbers, d, (rng.standard_normal(shape) * 0.05).astype(np.float16) if minimum else None, bits)


def model(w, opset=24, shape=None, kinds=None, bits=None, outputs=None):
    """A model of one node with W inside; x of any shape. kinds: other types for some inputs, by name. bits, outputs: in place of W's."""
    from onnx import TensorProto, helper, numpy_helper

    from lm2.export.ops import DOMAIN
    from lm2.export.ops.qlinear import VERSION, function, node

    kinds = kinds or {}
    value = helper.make_tensor_value_info
    held = [numpy_helper.from_array(getattr(w, n).astype(kinds.get(n, getattr(w, n).dtype)), n) for n in "qdm"]
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kinds.get("x", "float32")))
    output = value("y", TensorProto.FLOAT, shape and [*shape[:-1], w.outputs])
    made = node("x", "q", "d", "m", "y", bits or w.bits, w.outputs if outputs is None else outputs)
    graph = helper.make_graph([made], "one", [value("x", element, shape)], [output], held)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, VERSION)]
    return helper.make_model(graph, opset_imports=imports, functions=[function(opset)], ir_version=10)


def bound(x, w):
    """The largest error that docs/ops.md allows, in float64: (.., o)."""
    from lm2.export.ops.qlinear import scales, unpacked, values

    blocks = np.abs(x).reshape(*x.shape[:-1], -1, 32).max(-1).astype(np.float64)  # (.., k)
    d, m = (np.abs(half).astype(np.float64) for half in scales(w))  # (o, k)
    rounding = np.abs(values(w)).reshape(*d.shape, 32).sum(-1) / 64500  # (o, k)
    sums = 2.0**-24 * (d.shape[1] + 4) * (np.abs(unpacked(w)).sum(-1) * d + 32 * m)  # (o, k)
    return blocks @ (rounding + sums).T


kernel = functools.partial(kernel_at, "LM2_QLINEAR")
"""op_kit.kernel_at for this operator."""


def pack_numbers(numbers, bits):
    """Numbers (o, k, 32) with scales of 0.01 and minima of -0.05."""
    from lm2.export.ops.qlinear import pack

    return pack(numbers, np.full(numbers.shape[:2], 0.01, np.float16), np.full(numbers.shape[:2], -0.05, np.float16), bits)
