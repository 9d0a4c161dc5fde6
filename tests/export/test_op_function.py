"""The function body: what runtimes without the library run. Against the reference in stock ONNX Runtime and in onnx's own evaluator."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator
from op_kit import NAMES, check, feed, model, rows, session, with_odd_values

from lm2.export.ops import DOMAIN, NAME
from lm2.export.ops.function import OpsetError, function, node, opset_import, schema

OPSETS = (17, 21, 23, 24)
STOCK = 8
"""Ulp that the body in stock ONNX Runtime may be off: 3.2 were measured over 1e7 elements; its exp and tanh are other code on other processors. A body of
Sigmoid is off by thousands where gates hardly open."""


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_stock_onnxruntime_runs_the_body(opset, dtype):
    rng = np.random.default_rng(opset)
    stock = session(model(dtype, opset))
    for shape in ((2, 5, 7), (1, 1, 576), (3, 0, 4), (4,), ()):
        arrays = rows(rng, shape, dtype)
        (got,) = stock.run(None, feed(arrays))
        assert got.dtype == arrays[0].dtype and got.shape == shape
        check(got, arrays, STOCK)


def test_stock_onnxruntime_has_the_same_infinities_and_nan():
    rng = np.random.default_rng(7)
    arrays = with_odd_values(rng, rows(rng, (200, 64), np.float32), 0.3)
    (got,) = session(model()).run(None, feed(arrays))
    check(got, arrays, STOCK)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_gates_that_hardly_open_keep_their_digits(dtype):
    """sigmoid(-40) is 4e-18 and not 0: small gates write small banks, and a bank is relatively right however small it is."""
    rng = np.random.default_rng(9)
    scale = np.float64(1.0 if dtype == "float32" else 1e4)  # so that float16 can hold what is kept
    for low, high in ((-80, -18), (-18, -8), (-8, 8)):
        i, f = (rng.uniform(low, high, (64, 64)) for _ in "if")
        arrays = [a.astype(dtype) for a in (i, f, rng.standard_normal((64, 64)), scale * rng.standard_normal((64, 64)))]
        check(session(model(dtype)).run(None, feed(arrays))[0], arrays, STOCK)


def test_a_body_of_sigmoids_would_fail_it():
    """Negative control: ONNX Runtime's own Sigmoid under the same check."""
    from onnx import TensorProto, helper

    x = np.linspace(-80, -8, 4096, dtype=np.float32)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Sigmoid", ["x"], ["y"])], "one", [value("x", TensorProto.FLOAT, None)], [value("y", TensorProto.FLOAT, None)]
    )
    (gate,) = session(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)).run(None, {"x": x})
    with pytest.raises(AssertionError, match="wrong; first at"):  # i = x and z = 0: what is kept of an old row of ones is the gate
        check(gate, [x, x, np.zeros_like(x), np.ones_like(x)], STOCK)


@pytest.mark.parametrize("opset", [23, 24])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_reference_evaluator_runs_the_body(opset, dtype):
    arrays = rows(np.random.default_rng(8), (2, 5, 7), dtype)
    (got,) = ReferenceEvaluator(model(dtype, opset)).run(None, feed(arrays))
    assert got.dtype == arrays[0].dtype
    check(got, arrays, STOCK)


@pytest.mark.parametrize("opset", OPSETS)
def test_the_checker_passes_in_full_and_shapes_are_inferred(opset):
    proto = model(opset=opset, shape=["b", "t", "d"])
    onnx.checker.check_model(proto, full_check=True)
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    assert [d.dim_param for d in inferred.graph.output[0].type.tensor_type.shape.dim] == ["b", "t", "d"]


def test_without_body_or_library_it_does_not_load():
    """Negative control: it is the body that makes it run."""
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.Fail, match="not a registered function/op"):
        session(model(body=False))


def test_an_opset_outside_the_body_is_refused():
    with pytest.raises(OpsetError, match="no function body for ONNX opset 12; export with an opset from 15"):
        function(12)
    with pytest.raises(OpsetError, match="ONNX opset 99"):
        function(99)


def test_names_and_schema():
    proto, spec = node(*NAMES, "out", "place"), schema()
    assert (proto.op_type, proto.domain, proto.name, list(proto.input), list(proto.output)) == (NAME, DOMAIN, "place", list(NAMES), ["out"])
    assert (opset_import().domain, opset_import().version) == (DOMAIN, 1)
    assert (spec.domain, spec.name, spec.since_version, [i.name for i in spec.inputs]) == (DOMAIN, NAME, 1, list(NAMES))
    assert set(spec.type_constraints[0].allowed_type_strs) == {"tensor(float)", "tensor(float16)"}
    assert list(function(23).input) == list(NAMES) and function(23).opset_import[0].version == 23
