"""ai.lm2::QLinear without its kernel: packing is exact, the reference keeps the bound that docs/ops.md states, the body is W in float32."""

import numpy as np
import onnx
import onnxruntime
import pytest
import qlinear_kit
from onnx.reference import ReferenceEvaluator
from op_kit import library, session
from qlinear_earlier import as_earlier

from lm2.export.ops import qlinear
from lm2.export.ops.qlinear import PackError, QMatrix, exact, from_gguf, pack, reference, rounded, scales, unpacked, values

gguf = pytest.importorskip("gguf")


@pytest.mark.parametrize("bits", [4, 8])
def test_numbers_come_back(bits):
    rng = np.random.default_rng(bits)
    numbers = rng.integers(0, 16, (5, 3, 32)) if bits == 4 else rng.integers(-128, 128, (5, 3, 32))
    d, m = rng.standard_normal((2, 5, 3)).astype(np.float16)
    w = pack(numbers, d, m, bits)
    np.testing.assert_array_equal(unpacked(w), numbers)
    np.testing.assert_array_equal(values(w).reshape(5, 3, 32), numbers * d.astype(float)[..., None] + m.astype(float)[..., None])
    assert w.bits == bits and w.outputs == 5 and w.q.shape == (1, 3, bits, 16, 4) and w.d.shape == w.m.shape == (1, 3, 16)
    assert w.q[0, 2, 1, 3, 2] == (numbers[3, 2, 6] | numbers[3, 2, 22] << 4 if bits == 4 else numbers[3, 2, 6])
    assert w.d[0, 2, 3] == d[3, 2] and not (w.q[0, :, :, 5:].any() or w.d[0, :, 5:].any() or w.m[0, :, 5:].any())


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_gguf_blocks_are_kept_in_every_bit(kind):
    name = getattr(gguf.GGMLQuantizationType, kind)
    x = np.random.default_rng(3).standard_normal((6, 96)).astype(np.float32)
    raw = gguf.quants.quantize(x, name)
    w = from_gguf(raw.tobytes(), kind, 6)
    np.testing.assert_array_equal(values(w).astype(np.float32), gguf.quants.dequantize(raw, name))
    assert w.m.shape == ((1, 1, 1) if kind == "Q8_0" else (1, 3, 16))
    if kind == "Q4_1":
        blocks = raw.reshape(6, 3, 20)
        np.testing.assert_array_equal(w.q[0, :, :, :6].transpose(2, 0, 1, 3).reshape(6, 3, 16), blocks[..., 4:])
        np.testing.assert_array_equal(np.ascontiguousarray(w.m[0, :, :6].T).view(np.uint8).reshape(6, 3, 2), blocks[..., 2:4])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"numbers": np.full((2, 1, 32), 16)}, "from 0 to 15; these go from 16 to 16"),
        ({"numbers": np.full((2, 1, 32), 0.5)}, "whole"),
        ({"numbers": np.zeros((2, 32))}, "give .outputs, blocks, 32. and 4 or 8 bits"),
        ({"bits": 5}, "4 or 8 bits"),
        ({"d": np.full((2, 1), 0.1)}, "scales .* finite float16"),
        ({"d": np.full((2, 1), np.inf)}, "scales .* finite float16"),
        ({"m": np.full((2, 1), 1e6)}, "minima .* finite float16"),
        ({"m": np.zeros((1, 1))}, r"minima \(1, 1\) .* in the shape \(2, 1\)"),
    ],
)
def test_what_would_be_rounded_is_refused(change, said):
    good = {"numbers": np.zeros((2, 1, 32), int), "d": np.ones((2, 1)), "m": np.zeros((2, 1)), "bits": 4}
    pack(**good)
    with pytest.raises(PackError, match=said):
        pack(**good | change)


def test_bytes_that_are_no_blocks_are_refused():
    with pytest.raises(PackError, match="GGUF type Q6_K; Q4_0, Q4_1, Q8_0 can be packed"):
        from_gguf(b"\0" * 40, "Q6_K", 2)
    with pytest.raises(PackError, match="41 bytes are no 2 rows of Q4_1 blocks of 20 bytes"):
        from_gguf(b"\0" * 41, "Q4_1", 2)
    huge = np.zeros((1, 18), np.uint8)
    huge[0, :2] = np.array([9000], np.float16).view(np.uint8)
    with pytest.raises(PackError, match="minima"):
        from_gguf(huge.tobytes(), "Q4_0", 1)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("size", [1e-25, 1.0, 1e20])
def test_the_reference_is_within_the_bound(bits, size):
    """docs/ops.md states it. The rounding to whole numbers is most of it; a rounding to 8 bits, the control, is not within."""
    rng = np.random.default_rng(7)
    w = qlinear_kit.matrix(rng, 40, 20, bits)
    x = (rng.standard_normal((9, 640)) * size * np.exp(rng.standard_normal((9, 640)))).astype(np.float32)
    off = np.abs(reference(x, w) - exact(x, w))
    assert (off <= qlinear_kit.bound(x, w)).all()
    numbers, steps = rounded(x)
    coarse = (np.rint(numbers / 256) * 256 * steps.astype(float)[..., None]).reshape(x.shape)
    assert not (np.abs(coarse @ values(w).T - exact(x, w)) <= qlinear_kit.bound(x, w)).all()


def test_rounded_inputs():
    numbers, steps = rounded(np.array([[3.0, -1.5] + [0.0] * 30, [0.0] * 32, [1e-31] * 32, [np.inf] * 32], np.float32))
    assert numbers[0, 0, :2].tolist() == [32639, -16320] and steps[0, 0] == np.float32(3 / 32639)
    assert not numbers[1:].any() and steps[1:3].tolist() == [[0], [0]] and np.isnan(steps[3, 0])
    numbers, _ = rounded(np.random.default_rng(0).standard_normal((100, 320)).astype(np.float32))
    assert np.abs(numbers).max() == qlinear.MOST


@pytest.mark.parametrize("opset", [18, 24])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_body(tmp_path, opset, bits):
    """In onnx's evaluator and in stock ONNX Runtime, which folds all of it but the product into one float32 matrix when it loads."""
    rng = np.random.default_rng(bits)
    w = qlinear_kit.matrix(rng, 24, 3, bits, minimum=bits == 4)
    proto = qlinear_kit.model(w, opset, shape=["b", "t", 96])
    onnx.checker.check_model(proto, full_check=True)
    x = rng.standard_normal((2, 3, 96)).astype(np.float32)
    want, near = exact(x, w), 1e-6 * (np.abs(x).astype(float) @ np.abs(values(w)).T)
    assert (np.abs(ReferenceEvaluator(proto).run(None, {"x": x})[0] - want) <= near).all()
    kept = tmp_path / "kept.onnx"
    stock = session(proto, optimized_model_filepath=str(kept), graph_optimization_level=onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC)
    assert (np.abs(stock.run(None, {"x": x})[0] - want) <= near).all()
    folded = onnx.load(kept)
    assert [n.op_type for n in folded.graph.node] == ["MatMul"]
    np.testing.assert_array_equal(
        onnx.numpy_helper.to_array(folded.graph.initializer[0]), np.float32(values(w)).T if bits == 8 else float32_values(w).T
    )


def float32_values(w: QMatrix):
    """d q + m in float32: where the sum does not fit, the body rounds once."""
    d, m = (half.astype(np.float32)[..., None] for half in scales(w))
    return (unpacked(w) * d + m).astype(np.float32).reshape(w.outputs, -1)


@pytest.mark.parametrize("bits", [4, 8])
def test_version_1_in_a_file_runs_its_body_beside_the_library(bits):
    """Files exported before: the library has version 2 only, and gives such a node no kernel. The control is a node of version 2."""
    rng = np.random.default_rng(bits)
    w = qlinear_kit.matrix(rng, 40, 3, bits, minimum=bits == 4)
    earlier, x = qlinear_kit.model(w, shape=["t", 96]), rng.standard_normal((2, 96)).astype(np.float32)
    as_earlier(earlier)
    onnx.checker.check_model(earlier, full_check=True)
    assert [tuple(t.dims) for t in earlier.graph.initializer] == [(40, 3, 4 * bits), (40, 3), (40, 3) if bits == 4 else (1, 1)]
    want, near = exact(x, w), 1e-6 * (np.abs(x).astype(float) @ np.abs(values(w)).T)
    ran, alone = (session(earlier, path).run(None, {"x": x})[0] for path in (library(), None))
    assert np.array_equal(ran, alone) and (np.abs(ran - want) <= near).all()
    (now,) = session(qlinear_kit.model(w), library()).run(None, {"x": x})
    assert np.array_equal(now, reference(x, w)) and not np.array_equal(now, ran)
