"""Rotary tables that a runtime makes when it loads the file: the reference's, to the last bit but one, folded away in ONNX Runtime."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from op_kit import session

from lm2.export.attention import rope_tables
from lm2.export.graph import Graph, Store
from lm2.export.rotary import rotary_tables
from lm2.models.config import RopeConfig

ROPES = (RopeConfig(), RopeConfig(theta=1e6, turning_pairs=5), RopeConfig(rope_type="yarn", factor=4.0, attention_factor=1.25))


def model(rope, dtype="float32", positions=5000):
    g = Graph(24, Store())
    names = rotary_tables(g, rope, "", 32, positions, dtype)
    kind = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}[dtype]
    outputs = [helper.make_tensor_value_info(name, kind, ["p", "w"]) for name in names]
    graph = helper.make_graph(g.nodes, "tables", [], outputs, g.store.tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=12)


@pytest.mark.parametrize("rope", ROPES)
def test_the_tables_are_the_references(rope):
    """A unit of 2^-24 of the amplitude: both are the same angle's, one rounded from float64. Positions one further are not near."""
    proto = model(rope)
    onnx.checker.check_model(proto, full_check=True)
    wanted = rope_tables(rope, 32, 5001)
    for have, want in zip(session(proto).run(None, {}), wanted, strict=True):
        assert have.dtype == np.float32 and have.shape == want[:5000].shape
        near = 2.0**-23 * np.array(rope.amplitudes(32), np.float32)
        assert (np.abs(have - want[:5000]) <= near).all()
        assert not (np.abs(have - want[1:]) <= near).all()


def test_float16_and_folded(tmp_path):
    """ONNX Runtime keeps the tables alone: nothing is computed when the model runs."""
    kept = tmp_path / "kept.onnx"
    level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    made = session(model(ROPES[0], "float16", 64), optimized_model_filepath=str(kept), graph_optimization_level=level).run(None, {})
    for have, want in zip(made, rope_tables(ROPES[0], 32, 64), strict=True):
        np.testing.assert_array_equal(have, want.astype(np.float16))
    assert not {n.op_type for n in onnx.load(kept).graph.node} - {"Identity"}
