"""Blocks of 8- and 4-bit numbers: what they keep, what they lose, and the layouts they are written in."""

import numpy as np
import pytest
import tiny_model

pytest.importorskip("onnx")
from lm2.export.quantize import nbits, packed_int4, to_blocks, values

RNG = np.random.default_rng(0)


def error(w, bits):
    return np.linalg.norm(values(to_blocks(w, bits)) - w) / np.linalg.norm(w)


@pytest.mark.parametrize("width", [32, 48, 96, 7])
@pytest.mark.parametrize("bits,bound", [(8, 0.5 / 127), (4, 1 / 8)])
def test_no_value_is_off_by_more_than_its_step(width, bits, bound):
    """Half a step of the block's largest value; at 4 bits the far end of a block may be a whole step off."""
    w = RNG.standard_normal((5, width)).astype(np.float32)
    got = values(to_blocks(w, bits))
    assert got.shape == w.shape
    for k in range(0, width, 32):
        part = slice(k, k + 32)
        off = np.abs(got[:, part] - w[:, part]).max(-1)
        assert (off <= bound * 1.02 * np.abs(w[:, part]).max(-1)).all()


def test_q8_0_keeps_its_values():
    q = RNG.integers(-127, 128, (6, 4, 32))
    q[..., 0] = 127
    scale = np.float16(RNG.uniform(0.001, 0.1, (6, 4, 1))).astype(np.float32)
    w = (q * scale).reshape(6, -1).astype(np.float32)
    assert np.array_equal(values(to_blocks(w, 8)), w)


def test_q4_1_is_nearly_kept():
    """d q + m with any m: at 8 bits the error is under half of what rounding to largest / 127 leaves."""
    q = RNG.integers(0, 16, (64, 4, 32))
    q[..., 0], q[..., 1] = 0, 15
    d = np.float16(RNG.uniform(0.001, 0.1, (64, 4, 1))).astype(np.float32)
    m = np.float16(-d * RNG.uniform(6, 9, (64, 4, 1))).astype(np.float32)
    w = (q * d + m).reshape(64, -1).astype(np.float32)
    usual = np.abs(w.reshape(64, 4, 32)).max(-1, keepdims=True) / 127
    plain = (np.rint(w.reshape(64, 4, 32) / usual) * usual).reshape(64, -1)
    assert error(w, 8) < 0.6 * np.linalg.norm(plain - w) / np.linalg.norm(w)


def test_zero_and_tiny_blocks():
    w = np.zeros((2, 64), np.float32)
    w[1, 40] = 1e-9
    for bits in (4, 8):
        assert np.array_equal(values(to_blocks(w, bits))[0], w[0]) and np.isfinite(values(to_blocks(w, bits))).all()


def test_layouts():
    """MatMulNBits' unsigned numbers and ONNX's INT4, read back by their own definitions."""
    w = RNG.standard_normal((3, 64)).astype(np.float32)
    b8, b4 = to_blocks(w, 8), to_blocks(w, 4)
    assert np.array_equal(nbits(b8, 8).astype(int) - 128, b8.q)
    p = nbits(b4, 4).astype(int)
    assert np.array_equal(np.stack([p & 15, p >> 4], -1).reshape(b4.q.shape) - 8, b4.q)
    import onnx

    tensor = onnx.TensorProto(data_type=onnx.TensorProto.INT4, dims=(3, 2, 32), raw_data=packed_int4(b4.q).tobytes())
    assert np.array_equal(onnx.numpy_helper.to_array(tensor).astype(np.int8), b4.q)


def test_int4_says_what_it_costs_before_it_is_kept(tmp_path):
    """Measured on the files, against float32; nothing is left beside the export."""
    pytest.importorskip("onnxruntime")
    from lm2.export.export import export_model
    from lm2.export.options import Options

    source = tiny_model.make(tmp_path / "m", chunk=64)
    notes, there = [], []
    target = tmp_path / "x"
    summary = export_model(source, target, Options("int4"), lambda e: e.note and (notes.append(e.stage), there.append(target.exists())))
    assert len(notes) == 1 and "same likeliest token" in notes[0] and there == [False]
    assert summary["cost"]["kl"] > 0 and 0 <= summary["cost"]["top1"] <= 1 and summary["cost"]["tokens"] == 64
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "x"]
