"""The function body: what runtimes without the library run. Against the reference in stock ONNX Runtime and in onnx's own evaluator."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator
from op_kit import NAMES, check, feed, model, rows, session, with_odd_values

from lm2.export.ops import DOMAIN, NAME
from lm2.export.ops.function import OpsetError, function, node, opset_import, schema
from lm2.export.ops.reference import gated_memory_update

OPSETS = (17, 21, 23, 24)
STOCK = 5e-7
"""ONNX Runtime's sigmoid has a constant error of some 1e-7, however small the gate."""


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_stock_onnxruntime_runs_the_body(opset, dtype):
    rng = np.random.default_rng(opset)
    stock = session(model(dtype, opset))
    for shape in ((2, 5, 7), (1, 1, 576), (3, 0, 4), (4,), ()):
        arrays = rows(rng, shape, dtype)
        (got,) = stock.run(None, feed(arrays))
        assert got.dtype == arrays[0].dtype and got.shape == shape
        if dtype == "float32":
            check(got, arrays, STOCK)
        else:  # may round after every operator
            np.testing.assert_allclose(got.astype(np.float32), gated_memory_update(*arrays).astype(np.float32), rtol=4e-3, atol=8e-3)


def test_stock_onnxruntime_has_the_same_infinities_and_nan():
    rng = np.random.default_rng(7)
    arrays = with_odd_values(rng, rows(rng, (200, 64), np.float32), 0.3)
    keep = np.isnan(arrays[1]) | (arrays[1] > -80) | np.isneginf(arrays[1])
    arrays[1] = np.where(keep, arrays[1], np.float32(-np.inf))  # its sigmoid counts as 0 from about -87 on, the reference's from -104 on
    (got,) = session(model()).run(None, feed(arrays))
    check(got, arrays, STOCK)


@pytest.mark.parametrize("opset", [23, 24])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_reference_evaluator_runs_the_body(opset, dtype):
    arrays = rows(np.random.default_rng(8), (2, 5, 7), dtype)
    (got,) = ReferenceEvaluator(model(dtype, opset)).run(None, feed(arrays))
    assert got.dtype == arrays[0].dtype
    tolerance = 1e-6 if dtype == "float32" else 8e-3
    np.testing.assert_allclose(got.astype(np.float64), gated_memory_update(*arrays).astype(np.float64), rtol=tolerance, atol=tolerance)


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
    with pytest.raises(OpsetError, match="no function body for ONNX opset 12; export with an opset from 13"):
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
