"""GatedMemoryUpdate in ONNX files: the node, its function body in standard operators, its schema. Knows the onnx package only.

The body is what makes one file run anywhere: a runtime without the op's library, or one that never heard of it, runs the body; ONNX Runtime
with the library registered uses the kernel and ignores the body. Attach it last: inliners and optimisers remove it.
"""

from typing import TYPE_CHECKING

from ...models.errors import LM2Error
from . import DOMAIN, INPUTS, NAME, OUTPUT, VERSION

if TYPE_CHECKING:
    import onnx

OPSETS = (15, 25)
"""Lowest and highest ONNX opset the body is written for: its operators keep their meaning between them, and 15 is the first with CastLike."""


class OpsetError(LM2Error, ValueError):
    """The body is not written for the opset asked for."""


def function(opset: int) -> "onnx.FunctionProto":
    """The model-local function ai.lm2::GatedMemoryUpdate for a model at ONNX opset `opset` (its body must have the model's). Any float type.

    Raises OpsetError outside OPSETS.
    """
    from onnx import helper

    if not OPSETS[0] <= opset <= OPSETS[1]:
        raise OpsetError(f"{DOMAIN}::{NAME}: no function body for ONNX opset {opset}; export with an opset from {OPSETS[0]} to {OPSETS[1]}")
    i, f, z, old = INPUTS
    nodes = [
        helper.make_node("Constant", [], ["one"], value_float=1.0),
        *_gate(i, "input_gate"),
        *_gate(f, "forget_gate"),
        _float32(z, "wide_candidate"),
        helper.make_node("Tanh", ["wide_candidate"], ["candidate"]),
        _float32(old, "wide_old"),
        helper.make_node("Mul", ["input_gate", "candidate"], ["written"]),
        helper.make_node("Mul", ["forget_gate", "wide_old"], ["kept"]),
        helper.make_node("Add", ["written", "kept"], ["wide_new"]),
        helper.make_node("CastLike", ["wide_new", old], [OUTPUT]),
    ]
    text = "new = sigmoid(i) * tanh(z) + sigmoid(f) * old, elementwise: the gated memory update of LM2"
    return helper.make_function(DOMAIN, NAME, list(INPUTS), [OUTPUT], nodes, [helper.make_opsetid("", opset)], doc_string=text)


def _gate(x: str, gate: str) -> "list[onnx.NodeProto]":
    """1 / (1 + exp(-x)) in float32. Not Sigmoid: ONNX Runtime's is off by 1e-7 however small the gate, and 0 from -18 on."""
    from onnx import helper

    return [
        _float32(x, f"{gate}_wide"),
        helper.make_node("Neg", [f"{gate}_wide"], [f"{gate}_negative"]),
        helper.make_node("Exp", [f"{gate}_negative"], [f"{gate}_exp"]),
        helper.make_node("Add", [f"{gate}_exp", "one"], [f"{gate}_inverse"]),
        helper.make_node("Reciprocal", [f"{gate}_inverse"], [gate]),
    ]


def _float32(x: str, wide: str) -> "onnx.NodeProto":
    """What is computed is float32 for float16 too, and rounded once; for float32 runtimes drop the cast."""
    from onnx import TensorProto, helper

    return helper.make_node("Cast", [x], [wide], to=TensorProto.FLOAT)


def node(i: str, f: str, z: str, old: str, new: str, name: str = "") -> "onnx.NodeProto":
    """The node, by the names of its inputs and output in the graph. The model imports `opset_import()` and carries `function(...)`."""
    from onnx import helper

    return helper.make_node(NAME, [i, f, z, old], [new], name=name or None, domain=DOMAIN)


def opset_import() -> "onnx.OperatorSetIdProto":
    """The line that a model with the node adds to its opset imports."""
    from onnx import helper

    return helper.make_opsetid(DOMAIN, VERSION)


def schema() -> "onnx.defs.OpSchema":
    """The operator's schema: four inputs and one output of one type T, float32 or float16."""
    from onnx import defs

    formal = defs.OpSchema.FormalParameter
    return defs.OpSchema(
        NAME,
        DOMAIN,
        VERSION,
        doc="new = sigmoid(i) * tanh(z) + sigmoid(f) * old, elementwise",
        inputs=[formal(name, "T") for name in INPUTS],
        outputs=[formal(OUTPUT, "T")],
        type_constraints=[("T", ["tensor(float)", "tensor(float16)"], "float32 or float16")],
    )
