"""Matrices for QLinear: GGUF's grids are found again in every bit, other weights lose less than plain rounding, and exports multiply by these numbers."""

import numpy as np
import onnx_kit
import pytest
from compare import relative_l2
from safetensors.numpy import load_file, save_file

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
gguf = pytest.importorskip("gguf")
from op_kit import library, session  # noqa: E402

from lm2.export.blocks import to_qmatrix  # noqa: E402
from lm2.export.graph import Graph, Store  # noqa: E402
from lm2.export.linear import Matrices  # noqa: E402
from lm2.export.ops.qlinear import VERSION, PackError, from_gguf, function, pack, values  # noqa: E402
from lm2.export.options import Options  # noqa: E402
from lm2.models.errors import ConvertError  # noqa: E402


def blocks_of(kind, rows=12, columns=192, seed=0):
    """GGUF's bytes of random weights, and what a converter reads of them: float32 (o, i)."""
    name = getattr(gguf.GGMLQuantizationType, kind)
    raw = gguf.quants.quantize(np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32) * 0.05, name)
    return raw, gguf.quants.dequantize(raw, name)


def alike(a, b):
    return a.outputs == b.outputs and all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(a[:3], b[:3], strict=True))


@pytest.mark.parametrize(("kind", "bits"), [("Q4_1", 4), ("Q4_0", 4), ("Q8_0", 8)])
def test_ggufs_grids_are_found_again(kind, bits):
    """Q4_1 and Q8_0: the same q, d and m in every bit. Q4_0 may have two grids for a block that does not use all its numbers: the same values."""
    raw, w = blocks_of(kind)
    made = to_qmatrix(w, bits)
    assert np.array_equal(values(made), w)
    if kind != "Q4_0":
        assert alike(made, from_gguf(raw.tobytes(), kind, len(w)))
    off = w.copy()
    off[5, 40] *= 1.001  # control: one value that is on no grid
    assert not np.array_equal(values(to_qmatrix(off, bits)), off)


@pytest.mark.parametrize("kind", ["Q4_1", "Q4_0"])
def test_8_bits_keep_4_bit_grids_with_their_minima(kind):
    """Where most blocks need them: with a few, a minimum for every block is not worth its bytes."""
    _, w = blocks_of(kind)
    made = to_qmatrix(w, 8)
    assert made.bits == 8 and made.m.shape == made.d.shape and np.array_equal(values(made), w)
    mixed = np.random.default_rng(1).standard_normal(w.shape).astype(np.float32)
    mixed[:4] = w[:4]
    few = to_qmatrix(mixed, 8)
    assert few.m.shape == (1, 1, 1) and relative_l2(values(few), mixed) < 0.006


@pytest.mark.parametrize("rows", ["random", "Q4_1", "Q4_0", "Q8_0", "mixed"])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_matrix_that_comes_in_parts(monkeypatch, rows, bits):
    """The same numbers as of the matrix as a whole, whatever the parts; whether 8 bits have minima depends on all of it."""
    w = np.random.default_rng(1).standard_normal((40, 192)).astype(np.float32)
    if rows != "random":
        own = blocks_of("Q4_1" if rows == "mixed" else rows, len(w))[1]
        w[: 4 if rows == "mixed" else None] = own[: 4 if rows == "mixed" else None]
    whole = to_qmatrix(w, bits)
    for count in (1, 192, 5 * 192, 17 * 192, 32 * 192):
        monkeypatch.setattr("lm2.export.weights.AT_ONCE", count)
        made = to_qmatrix(w, bits)
        assert alike(made, whole)
    alone = [to_qmatrix(w[i : i + 1], bits).m.shape for i in range(len(w))]  # control: rows for themselves decide otherwise
    assert bits == 4 or rows != "mixed" or len(set(alone)) == 2


def test_grids_whose_ends_are_not_used():
    """Numbers 3 to 9 of 0 to 15 with a minimum that float16 holds, a negative step, zeros, one value alone."""
    rng = np.random.default_rng(2)
    numbers = rng.integers(3, 10, (6, 4, 32))
    d = np.float16(rng.uniform(0.001, 0.1, (6, 4)))
    d[3:] *= -1
    w = values(pack(numbers, d, np.float16(d * -7.3), 4)).astype(np.float32)
    w[0, :32], w[1, :32] = 0, 0.25
    assert np.array_equal(values(to_qmatrix(w, 4)), w)


@pytest.mark.parametrize("draw", ["standard_normal", "heavy", "laplace"])
@pytest.mark.parametrize(("bits", "gate"), [(4, 0.92), (8, 0.945)])
def test_other_weights_lose_less_than_plain_rounding(draw, bits, gate):
    """docs/decisions.md has the figures."""
    rng = np.random.default_rng(3)
    w = (rng.standard_t(3, (100, 320)) if draw == "heavy" else getattr(rng, draw)(size=(100, 320))).astype(np.float32)
    b = w.reshape(100, 10, 32)
    low, high = (b.min(-1), b.max(-1)) if bits == 4 else (np.zeros((100, 10)), np.abs(b).max(-1))
    d, m = (x.astype(np.float16).astype(np.float32)[..., None] for x in ((high - low) / (15 if bits == 4 else 127), low))
    plain = np.clip(np.rint((b - m) / d), *((0, 15) if bits == 4 else (-127, 127))) * d + m
    assert relative_l2(values(to_qmatrix(w, bits)), w) < gate * relative_l2(plain.reshape(w.shape), w)


def test_zeros_tiny_and_huge_values():
    w = np.zeros((3, 64), np.float32)
    w[1], w[2, 5] = 0.1, 1e-9
    for bits in (4, 8):
        assert np.allclose(values(to_qmatrix(w, bits)), w, atol=1e-4)
    w[2, 7] = 1e8
    for bits in (4, 8):
        with pytest.raises(PackError, match="float16"):
            to_qmatrix(w, bits)


def one(w, precision):
    """The model of one linear layer, and the initializers by name."""
    g = Graph(24, Store())
    g.outputs_as({Matrices(onnx_kit.OneMatrix(w), Options(precision)).linear(g, "x", "a"): "y"})
    value, float32 = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    inputs, outputs = [value("x", float32, ["b", "t", w.shape[1]])], [value("y", float32, ["b", "t", len(w)])]
    graph = onnx.helper.make_graph(g.nodes, "one", inputs, outputs, g.store.tensors)
    opsets = [onnx.helper.make_opsetid(d, 24 if d == "" else VERSION) for d in g.domains]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=12, functions=[function(24)])
    onnx.checker.check_model(model, full_check=True)
    return model, {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}


@pytest.mark.parametrize("how", ["body", "kernel"])
@pytest.mark.parametrize("precision", ["int4", "int8"])
@pytest.mark.parametrize("width", [32, 576, 48, 7])
def test_the_graph_multiplies_by_these_values(width, precision, how):
    rng = np.random.default_rng(width)
    w = rng.standard_normal((24, width)).astype(np.float32)
    x = rng.standard_normal((2, 5, width)).astype(np.float32) + 0.5
    model, _ = one(w, precision)
    (y,) = session(model, library() if how == "kernel" else None).run(None, {"x": x})
    made = to_qmatrix(w, int(precision[-1]))
    assert relative_l2(y, x @ values(made)[:, :width].T) < 3e-5


def test_weights_that_float16_scales_do_not_hold_are_refused():
    with pytest.raises(ConvertError, match=r"model.safetensors: matrix a has values up to 1e\+08, .*: export with --precision fp32"):
        one(np.full((3, 32), 1e8, np.float32), "int4")


@pytest.fixture(scope="module")
def on_grid(tmp_path_factory):
    """Folders (fp32, int4, int8) of a tiny model whose matrices came from a Q4_1 file, its embedding from a Q8_0 one."""
    root = tmp_path_factory.mktemp("grid")
    source, _ = onnx_kit.exported(root / "draft", "gated", width=64, head_dim=16, intermediate_size=96)
    file = source / "model.safetensors"
    tensors = {name: array.copy() for name, array in load_file(file).items()}
    for name, w in tensors.items():
        if name.endswith(("_proj.weight", "embed_tokens.weight")):
            kind = gguf.GGMLQuantizationType.Q8_0 if "embed" in name or ".memory." in name else gguf.GGMLQuantizationType.Q4_1
            tensors[name] = gguf.quants.dequantize(gguf.quants.quantize(w, kind), kind)
    save_file(tensors, file, metadata={"format": "pt"})
    (source / "fingerprint.json").unlink(missing_ok=True)
    source.rename(root / "model")
    return {p: onnx_kit.exported(root, "gated", Options(p))[1] for p in ("fp32", "int4", "int8")}


def logits_of(path, lib=None, change=None):
    """Logits (t, v) of a call from an empty memory; `change` edits the initializers first, by name."""
    proto = onnx.load(path / "model.onnx")
    if change:
        change({t.name: t for t in proto.graph.initializer})
    feeds = {}
    for i in proto.graph.input:
        kind = np.int64 if i.type.tensor_type.elem_type == onnx.TensorProto.INT64 else np.float32
        feeds[i.name] = np.zeros([d.dim_value or (16 if d.dim_param == "window" else 1) for d in i.type.tensor_type.shape.dim], kind)
    feeds |= {"input_ids": np.arange(3, 19)[None], "new_chunk": np.array([1]), "logits_from": np.array([0])}
    return session(proto, lib).run(["logits"], feeds)[0][0]


@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_a_model_on_the_grid_is_its_float32(on_grid, precision):
    """Stock ONNX Runtime and the kernel: not a rounded bit of a weight is lost, so logits are float32's; the likeliest token everywhere."""
    want = logits_of(on_grid["fp32"])
    for lib, gate in ((None, 2e-6), (library(), 2e-4)):
        got = logits_of(on_grid[precision], lib)
        assert relative_l2(got, want) < gate and (got.argmax(-1) == want.argmax(-1)).all()


@pytest.mark.parametrize("fault", ["a scale", "nibbles", "minima"])
def test_a_wrong_matrix_is_noticed(on_grid, fault):
    """Negative controls of the gates above: one block's scale doubled, low and high halves swapped, minima left out, of one matrix."""

    def change(tensors):
        name = {"a scale": "d", "nibbles": "q", "minima": "m"}[fault]
        tensor = tensors[f"model.layers.1.mlp.down_proj.{name}"]
        array = onnx.numpy_helper.to_array(tensor).copy()
        if fault == "a scale":
            array[0, 1, 5] *= 2
        else:
            array = (array >> 4 | array << 4).astype(np.uint8) if fault == "nibbles" else array * 0
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))

    want = logits_of(on_grid["fp32"])
    for lib in (None, library()):
        assert relative_l2(logits_of(on_grid["int4"], lib, change), want) > 5 * 2e-4


@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_library_and_body_say_the_same_tokens(tmp_path, precision, monkeypatch):
    """Random weights, folds included; greedy."""
    _, path = onnx_kit.exported(tmp_path, "gated", Options(precision))
    said = []
    for found in (None, library()):
        monkeypatch.setattr("lm2.runtime.backends.onnx_cache.find_library", lambda kind, report=None, found=found: found)
        b = onnx_kit.backend(path)
        logits, window = b.extend(np.arange(5), b.start(1, None, 64))
        tokens = []
        for step in range(40):
            tokens.append(int(logits[0].argmax()))
            window = b.fold(window) if step % 10 == 9 else window
            logits, window = b.extend(tokens[-1:], window)
        said.append(tokens)
    assert said[0] == said[1] and len(set(said[0])) > 1


def test_the_reference_evaluator_runs_it():
    """onnx's own evaluator by the body, both bits and a width that is no multiple of 32."""
    from onnx.reference import ReferenceEvaluator

    rng = np.random.default_rng(0)
    for precision, width in (("int4", 96), ("int8", 40)):
        w, x = rng.standard_normal((24, width)).astype(np.float32), rng.standard_normal((1, 4, width)).astype(np.float32)
        made = to_qmatrix(w, int(precision[-1]))
        (y,) = ReferenceEvaluator(one(w, precision)[0]).run(None, {"x": x})
        assert relative_l2(y, x @ values(made)[:, :width].T) < 1e-6


@pytest.mark.parametrize("how", ["body", "kernel"])
@pytest.mark.parametrize("vocabulary", [48, 61])
@pytest.mark.parametrize("kind", ["Q4_1", "random"])
@pytest.mark.parametrize("width", [64, 48])
def test_the_embedding_takes_rows_out_of_the_heads_tiles(vocabulary, width, kind, how):
    """With minima and without, the last row of a tile that is not whole, widths that are no multiple of 32; in one table with the head."""
    rng = np.random.default_rng(width)
    w = blocks_of("Q4_1", vocabulary, 64)[1][:, :width] if kind == "Q4_1" else rng.standard_normal((vocabulary, width)).astype(np.float32)
    g, name = Graph(24, Store()), "model.embed_tokens"
    weights = onnx_kit.OneMatrix(w, name)
    matrices = Matrices(weights, Options("int8"))
    x = matrices.embedding(g, "ids")
    g.outputs_as({x: "x", matrices.head(g, x, True, width, vocabulary): "y"})
    value, float32, int64 = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    outputs = [value("x", float32, ["b", "t", width]), value("y", float32, ["b", "t", vocabulary])]
    graph = onnx.helper.make_graph(g.nodes, "both", [value("ids", int64, ["b", "t"])], outputs, g.store.tensors)
    opsets = [onnx.helper.make_opsetid(d, 24 if d == "" else VERSION) for d in g.domains]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=12, functions=[function(24)])
    onnx.checker.check_model(model, full_check=True)
    ids = rng.permutation(vocabulary)[: 2 * 20].reshape(2, 20)
    ids[0, :4] = 0, vocabulary - 1, 15, 16
    x, y = session(model, library() if how == "kernel" else None).run(None, {"ids": ids})
    made = values(to_qmatrix(w, 8))[:, :width]
    assert np.array_equal(x, made[ids].astype(np.float32)) and relative_l2(y, x @ made.T) < 3e-5
    assert not np.array_equal(x[0, 2], made[16].astype(np.float32))  # control: the tile after
