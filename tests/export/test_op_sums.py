"""ai.lm2::BlockSums: body and kernel against NumPy, refusals, threads, memory; and that 4-bit files exported before QLinear run it."""

import json
from collections import Counter

import numpy as np
import onnx
import onnx_kit
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from op_kit import OPS, compile_and_run, library, session

from lm2.export.ops import DOMAIN
from lm2.export.ops.sums import NAME, function

REFUSED = onnxruntime.capi.onnxruntime_pybind11_state
SHAPES = ((1, 1, 32), (1, 1, 576), (2, 3, 64), (1, 130, 96), (2, 65, 1536))


def model(opset=24, shape=None):
    """One node; x of any shape."""
    node = helper.make_node(NAME, ["x"], ["y"], domain=DOMAIN)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node], "one", [value("x", TensorProto.FLOAT, shape)], [value("y", TensorProto.FLOAT, shape and [*shape[:-1], "w"])]
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=imports, functions=[function(opset)], ir_version=11)


def expected(x):
    return np.concatenate([x, x.reshape(*x.shape[:-1], x.shape[-1] // 32, 32).astype(np.float64).sum(-1)], -1)


def check(got, x):
    want = expected(x)
    width = x.shape[-1]
    assert got.dtype == np.float32 and got.shape == want.shape
    np.testing.assert_array_equal(got[..., :width], x)
    magnitudes = np.abs(x).reshape(*x.shape[:-1], width // 32, 32).sum(-1, dtype=np.float64)
    assert (np.abs(got[..., width:] - want[..., width:]) <= 8 * 2.0**-24 * magnitudes).all()


@pytest.mark.parametrize("opset", [23, 24])
@pytest.mark.parametrize("how", ["evaluator", "stock", "kernel"])
def test_values(opset, how):
    rng = np.random.default_rng(opset)
    proto = model(opset)
    onnx.checker.check_model(model(opset, ["b", "t", "d"]), full_check=True)
    if how == "evaluator":
        run = ReferenceEvaluator(proto).run
    else:
        run = session(proto, library() if how == "kernel" else None, threads=2).run
    for shape in SHAPES if how != "evaluator" else SHAPES[:3]:
        x = rng.standard_normal(shape).astype(np.float32)
        check(run(None, {"x": x})[0], x)


def test_other_ranks_and_odd_values_in_the_kernel():
    run = session(model(), library()).run
    for shape in ((64,), (5, 32), (2, 1, 3, 32), (4, 0), (3, 0, 32)):
        x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        check(run(None, {"x": x})[0], x)
    x = np.zeros((1, 1, 96), np.float32)
    x[..., 3], x[..., 40] = np.nan, np.inf
    (got,) = run(None, {"x": x})
    assert np.isnan(got[0, 0, 96]) and got[0, 0, 97] == np.inf and got[0, 0, 98] == 0


def test_a_row_has_the_same_bits_wherever_it_stands():
    x = np.random.default_rng(2).standard_normal((1, 200, 576)).astype(np.float32)
    (whole,) = session(model(), library(), threads=4).run(None, {"x": x})
    one = session(model(), library()).run
    for at in (0, 63, 64, 199):
        np.testing.assert_array_equal(one(None, {"x": x[:, at : at + 1]})[0], whole[:, at : at + 1])


def test_what_does_not_fit_is_refused_and_the_session_goes_on():
    made = session(model(), library())
    for shape in ((1, 1, 33), ()):
        with pytest.raises(REFUSED.InvalidArgument, match="BlockSums: input x has rank .*multiple of 32"):
            made.run(None, {"x": np.zeros(shape, np.float32)})
    check(made.run(None, {"x": np.ones((1, 1, 32), np.float32)})[0], np.ones((1, 1, 32), np.float32))


SANITIZED = """#include "block_sums.c"
#include <stdlib.h>
int main(void) {
    for (size_t rows = 1; rows < 200; rows += 33) {
        for (size_t width = 32; width <= 160; width += 32) {
            float *x = calloc(rows * width, 4), *out = malloc(rows * (width + width / 32) * 4);
            Work work = {x, out, rows, width + EXTRA};
            for (size_t k = 0; k <= (rows - 1) / PARALLEL_ROWS; k++) run_block(&work, k);
            free(x);
            free(out);
        }
    }
    puts("ok");
    return 0;
}
"""


@pytest.mark.parametrize("extra", [0, 32])
def test_nothing_is_read_or_written_out_of_bounds(tmp_path, extra):
    """Under AddressSanitizer; with rows taken for a block wider than they are, a control, it is seen."""
    (tmp_path / "main.c").write_text(SANITIZED)
    flags = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", f"-DEXTRA={extra}")
    code, out, err = compile_and_run(tmp_path, [tmp_path / "main.c"], flags, (), OPS)
    assert ((code, out, err) == (0, "ok\n", "")) if not extra else (code != 0 and "heap-buffer-overflow" in err)


def as_exported_before(path):
    """An int4 file of --plain as default ones were before QLinear: block sums as this operator."""
    proto = onnx.load(path / "model.onnx")
    graph, made = proto.graph, {o: n for n in proto.graph.node for o in n.output}
    for joined in [n for n in graph.node if n.op_type == "Concat" and "with_sums" in n.name]:
        x, sums = joined.input
        for dead in (made[sums], made[made[sums].input[0]]):
            graph.node.remove(dead)
        joined.CopyFrom(helper.make_node(NAME, [x], list(joined.output), name=joined.name, domain=DOMAIN))
    proto.functions.append(function(24))
    proto.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return proto


def test_4_bit_files_exported_before_run_the_kernel(tmp_path):
    """With the library no block is summed by standard operators; logits are the body's but for rounding."""
    from lm2.export.options import Options

    _, path = onnx_kit.exported(tmp_path, "gated", Options("int4", plain=True))
    proto = as_exported_before(path)
    onnx.checker.check_model(proto, full_check=True)
    feeds = {}
    for i in proto.graph.input:
        kind = np.int64 if i.type.tensor_type.elem_type == TensorProto.INT64 else np.float32
        feeds[i.name] = np.zeros([d.dim_value or (8 if d.dim_param == "window" else 1) for d in i.type.tensor_type.shape.dim], kind)
    feeds |= {"input_ids": np.arange(5)[None], "new_chunk": np.array([1]), "logits_from": np.array([0])}
    made, ran = [], []
    for how in (None, library()):
        profile = str(tmp_path / ("body" if how is None else "kernel"))
        run = session(proto, how, enable_profiling=True, profile_file_prefix=profile)
        made.append(run.run(["logits"], feeds)[0])
        with open(run.end_profiling(), encoding="utf-8") as f:
            ran.append(Counter(e["args"]["op_name"] for e in json.load(f) if e["name"].endswith("_kernel_time")))
    assert ran[0][NAME] == 0 and ran[0]["ReduceSum"] > 0
    assert ran[1][NAME] == ran[0]["ReduceSum"] and ran[1]["ReduceSum"] == 0
    assert np.linalg.norm(made[0] - made[1]) < 0.02 * np.linalg.norm(made[0])
