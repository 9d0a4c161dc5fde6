"""The native library in ONNX Runtime: values against the reference, that it is used, refusals, threads."""

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest
from op_kit import check, feed, library, model, rows, session, with_odd_values

from lm2.export.ops.reference import gated_memory_update

STOCK = 8  # ulp, as in test_op_function.py
KINDS = ("float32", "float16")
REFUSED = onnxruntime.capi.onnxruntime_pybind11_state


@pytest.fixture(scope="module")
def native():
    return {kind: session(model(kind), library()) for kind in KINDS}


@pytest.mark.parametrize("dtype", KINDS)
def test_fuzz_against_the_reference(native, dtype):
    rng = np.random.default_rng(11)
    for round in range(150):
        shape = tuple(int(n) for n in rng.integers(0 if round % 5 == 0 else 1, 9, rng.integers(0, 5)))
        arrays = with_odd_values(rng, rows(rng, shape, dtype, 10.0 ** rng.integers(-3, 3)), rng.choice([0.0, 0.2, 0.9]))
        check(native[dtype].run(None, feed(arrays))[0], arrays)


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("count", [1, 7, 8, 15, 16, 17, 255, 256, 257, 8191, 8192, 8193, 16385, 30000])
def test_every_length_around_vectors_and_blocks(native, dtype, count):
    arrays = rows(np.random.default_rng(count), (count,), dtype)
    check(native[dtype].run(None, feed(arrays))[0], arrays)


@pytest.mark.parametrize("dtype", KINDS)
def test_an_element_is_the_same_wherever_it_stands(native, dtype):
    """However rows are split over calls and threads: the same bits."""
    arrays = rows(np.random.default_rng(13), (40, 577), dtype)
    (whole,) = session(model(dtype), library(), threads=4).run(None, feed(arrays))
    for cut in (1, 3, 17):
        parts = [native[dtype].run(None, feed([a[at : at + cut] for a in arrays]))[0] for at in range(0, 40, cut)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_small_candidates_keep_their_digits(native):
    """tanh(z) of a small z is relatively, not only absolutely, near: a bank of small rows stays exact."""
    z = np.logspace(-30, 0, 4000, dtype=np.float32)
    far, zero = np.full_like(z, 40), np.zeros_like(z)
    (got,) = native["float32"].run(None, feed([far, far, z, zero]))
    np.testing.assert_allclose(got, np.tanh(z.astype(np.float64)), rtol=5 * 2.0**-23)


def test_measured_error_stays_where_the_page_says(native):
    """5 ulp of |written| + |kept| for ordinary values, on 2^18 elements; and not so loose that the bound means nothing."""
    arrays = rows(np.random.default_rng(14), (1 << 18,), np.float32, 3.0)
    i, f, z, old = (a.astype(np.float64) for a in arrays)
    written, kept = np.tanh(z) / (1 + np.exp(-i)), old / (1 + np.exp(-f))
    (got,) = native["float32"].run(None, feed(arrays))
    error = np.max(np.abs(got - (written + kept)) / (np.abs(written) + np.abs(kept))) / 2.0**-23
    assert 0.5 < error <= 5


def test_rows_without_contiguous_memory_give_the_same(native):
    """ONNX tensors have no strides: the Python binding copies such an array before the kernel sees it."""
    arrays = rows(np.random.default_rng(15), (6, 10, 8), np.float32)
    views = [a.transpose(2, 0, 1)[::2, :, ::3] for a in arrays]
    check(native["float32"].run(None, feed(views))[0], [np.ascontiguousarray(v) for v in views])


def test_inputs_may_be_one_tensor(native):
    (x, *_) = rows(np.random.default_rng(16), (3, 50), np.float32)
    check(native["float32"].run(None, feed([x] * 4))[0], [x] * 4)


def kernels_run(proto, path, folder, **settings):
    """Names of the operators that a run executed, from ONNX Runtime's own profile."""
    used = session(proto, path, enable_profiling=True, profile_file_prefix=str(folder / "profile"), **settings)
    arrays = rows(np.random.default_rng(17), (2, 3, 8), "float32")
    (got,) = used.run(None, feed(arrays))
    check(got, arrays, 5 if path is not None else STOCK)
    with open(used.end_profiling(), encoding="utf-8") as f:
        events = json.load(f)
    return Counter(e["args"]["op_name"] for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time"))


LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")


@pytest.mark.parametrize("level", LEVELS)
def test_the_profile_shows_the_kernel_with_the_library_and_the_body_without(tmp_path, level):
    level = getattr(onnxruntime.GraphOptimizationLevel, level)
    assert kernels_run(model(), library(), tmp_path, graph_optimization_level=level) == {"GatedMemoryUpdate": 1}
    without = kernels_run(model(), None, tmp_path, graph_optimization_level=level)
    assert "GatedMemoryUpdate" not in without and without["Reciprocal"] == 2 and without["Tanh"] == 1


def test_the_kernel_is_used_inside_a_loop(tmp_path):
    """A subgraph's node finds the kernel too: 3 turns of a Loop are 3 kernel runs."""
    from onnx import TensorProto, helper
    from op_kit import NAMES

    from lm2.export.ops.function import function, node, opset_import

    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("i", "f", "z", "row", "next"), helper.make_node("Identity", ["go"], ["on"])],
        "turn",
        [value("turn", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("row", TensorProto.FLOAT, None)],
        [value("on", TensorProto.BOOL, []), value("next", TensorProto.FLOAT, None)],
    )
    times = helper.make_tensor("times", TensorProto.INT64, [], [3])
    loop = [helper.make_node("Constant", [], ["n"], value=times), helper.make_node("Loop", ["n", "", "old"], ["new"], body=body)]
    graph = helper.make_graph(loop, "loop", [value(n, TensorProto.FLOAT, None) for n in NAMES], [value("new", TensorProto.FLOAT, None)])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23), opset_import()], functions=[function(23)], ir_version=10)
    used = session(proto, library(), enable_profiling=True, profile_file_prefix=str(tmp_path / "profile"))
    arrays = rows(np.random.default_rng(18), (2, 8), "float32")
    (got,) = used.run(None, feed(arrays))
    for _ in range(3):
        arrays[3] = gated_memory_update(*arrays)
    np.testing.assert_allclose(got, arrays[3], rtol=2e-6, atol=2e-6)
    with open(used.end_profiling(), encoding="utf-8") as f:
        assert (
            sum(e.get("args", {}).get("op_name") == "GatedMemoryUpdate" and e["name"].endswith("_kernel_time") for e in json.load(f)) == 3
        )


@pytest.mark.parametrize(
    ("place", "shape", "said"),
    [
        ("f", (2, 3, 4), r"input i is float32 \(2,3,5\) and input f is float32 \(2,3,4\)"),
        ("z", (1, 3, 5), r"input z is float32 \(1,3,5\)"),
        ("old", (3, 5), r"input old is float32 \(3,5\)"),
        ("old", (2, 3, 5, 1), r"input old is float32 \(2,3,5,1\)"),
        ("z", (), r"input z is float32 \(\)"),
        ("z", (0, 3, 5), r"input z is float32 \(0,3,5\)"),
    ],
)
def test_other_shapes_are_refused_with_both(native, place, shape, said):
    inputs = feed(rows(np.random.default_rng(19), (2, 3, 5), "float32"))
    inputs[place] = np.zeros(shape, np.float32)
    with pytest.raises(REFUSED.InvalidArgument, match=said):
        native["float32"].run(None, inputs)
    inputs[place] = np.zeros((2, 3, 5), np.float32)
    assert native["float32"].run(None, inputs)[0].shape == (2, 3, 5)  # the session goes on


def test_a_rank_above_32_is_refused(native):
    with pytest.raises(REFUSED.InvalidArgument, match="input i has rank 33; at most 32"):
        native["float32"].run(None, feed([np.zeros((1,) * 33, np.float32)] * 4))


@pytest.mark.parametrize("kinds", [["float32", "float16", "float32", "float32"], ["float16", "float16", "float16", "float32"]])
def test_mixed_types_do_not_load(kinds):
    with pytest.raises(REFUSED.Fail, match="GatedMemoryUpdate"):
        session(model(kinds[0], kinds=kinds), library())


def test_a_type_that_is_not_there_does_not_load():
    with pytest.raises(REFUSED.InvalidGraph, match=r"tensor\(double\).*GatedMemoryUpdate"):
        session(model("float64"), library())


def test_many_sessions_and_threads_at_once():
    rng = np.random.default_rng(20)
    arrays = {kind: rows(rng, (3, 4000), kind) for kind in KINDS}
    shared = {kind: session(model(kind), library(), threads=2) for kind in KINDS}
    expected = {kind: shared[kind].run(None, feed(arrays[kind]))[0] for kind in KINDS}

    def work(k):
        kind = KINDS[k % 2]
        own = session(model(kind), library(), threads=1 + k % 2)
        return all(np.array_equal(used.run(None, feed(arrays[kind]))[0], expected[kind]) for _ in range(20) for used in (shared[kind], own))

    with ThreadPoolExecutor(12) as pool:
        assert all(pool.map(work, range(24)))
