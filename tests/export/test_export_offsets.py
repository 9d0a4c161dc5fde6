"""4-bit blocks with a minimum of their own: what they keep of Q4_1, and that the graph multiplies by the matrix they stand for."""

import numpy as np
import onnx_kit
import pytest
from compare import relative_l2

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
from lm2.export.graph import Graph, Store  # noqa: E402
from lm2.export.linear import Matrices  # noqa: E402
from lm2.export.offsets import offset_values, pairs, to_offset_blocks  # noqa: E402
from lm2.export.options import Options  # noqa: E402
from lm2.export.quantize import to_blocks, values  # noqa: E402


def q4_1(rng, rows, blocks):
    """A matrix on GGUF's grid, its numbers and steps: d q + m with half-precision d and m, all of 0 and 15 used."""
    q = rng.integers(0, 16, (rows, blocks, 32))
    q[..., 0], q[..., 1] = 0, 15
    d = np.float16(rng.uniform(0.001, 0.1, (rows, blocks, 1))).astype(np.float32)
    m = np.float16(-d * rng.uniform(4, 11, d.shape)).astype(np.float32)
    return (q * d + m).reshape(rows, -1).astype(np.float32), q, d[..., 0]


@pytest.mark.parametrize("blocks", [1, 18, 32, 33, 48])
def test_q4_1_is_kept(blocks):
    """Numbers and steps exactly, minima to about a thirtieth of a step: a tenth of what whole zero points lose, and of symmetric blocks."""
    w, q, d = q4_1(np.random.default_rng(blocks), 40, blocks)
    made = to_offset_blocks(w)
    assert np.array_equal(made.q[:, :blocks], q) and np.array_equal(made.scales[:, :blocks].astype(np.float32), d)
    assert made.columns == 33 * blocks and made.q.shape[1] == blocks + -(-blocks // 32)
    error = relative_l2(offset_values(made), w)
    whole = ((q - made.zeros[:, :blocks, None]) * d[..., None]).reshape(w.shape)
    assert error < 0.008 and error < 0.15 * relative_l2(whole, w) and error < 0.15 * relative_l2(values(to_blocks(w, 4)), w)


def test_other_weights_lose_less_than_symmetric_blocks():
    w = np.random.default_rng(0).standard_normal((50, 320)).astype(np.float32)
    assert relative_l2(offset_values(to_offset_blocks(w)), w) < 0.9 * relative_l2(values(to_blocks(w, 4)), w)
    flat = np.zeros((3, 64), np.float32)
    flat[1] = 0.25
    flat[2, 5] = 1e-9
    made = offset_values(to_offset_blocks(flat))
    assert np.isfinite(made).all() and np.allclose(made, flat, atol=1e-3)


def test_pairs():
    numbers = np.random.default_rng(1).integers(0, 16, (4, 7)).astype(np.uint8)
    packed = pairs(numbers)
    assert packed.shape == (4, 4) and np.array_equal(packed & 15, numbers[:, ::2]) and np.array_equal(packed[:, :3] >> 4, numbers[:, 1::2])


@pytest.mark.parametrize(("portable", "gate"), [(True, 2e-6), (False, 0.02)])
@pytest.mark.parametrize("blocks", [1, 3, 18, 33])
def test_the_graph_multiplies_by_these_values(blocks, portable, gate):
    """DequantizeLinear: to rounding. MatMulNBits: it rounds its inputs to 8 bits. Without the sums, a control, the product is another one."""
    rng = np.random.default_rng(blocks)
    w, *_ = q4_1(rng, 24, blocks)
    x = rng.standard_normal((2, 5, w.shape[1])).astype(np.float32) + 0.5
    g = Graph(24, Store())
    y = Matrices(onnx_kit.OneMatrix(w), Options("int4", portable=portable, plain=not portable)).linear(g, "x", "a")
    g.outputs_as({y: "y"})
    value, float32 = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        g.nodes, "one", [value("x", float32, ["b", "t", w.shape[1]])], [value("y", float32, ["b", "t", 24])], g.store.tensors
    )
    opsets = [onnx.helper.make_opsetid(d, 24 if d == "" else 1) for d in g.domains]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=12)
    onnx.checker.check_model(model, full_check=True)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if portable:  # else ONNX Runtime makes a MatMulNBits of it
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    got = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    made = to_offset_blocks(w)
    assert relative_l2(got, x @ offset_values(made).T) < gate
    whole = (made.q[:, :blocks].astype(np.float32) - made.zeros[:, :blocks, None]) * made.scales[:, :blocks, None].astype(np.float32)
    assert relative_l2(got, x @ whole.reshape(w.shape).T) > 2 * gate
