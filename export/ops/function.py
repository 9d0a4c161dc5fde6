"""GatedMemoryUpdate in ONNX files: the node, its function body in standard operators, its schema. Knows the onnx package only.

The body is what makes one file run anywhere: a runtime without the op's library, or one that never heard of it, runs the body; ONNX Runtime
with the library registered uses the kernel and ignores the body. Attach it last: inliners and optimisers remove it.
"""

from typing import TYPE_CHECKING

from ...models.errors import LM2Error
from . import DOMAIN, INPUTS, NAME, OUTPUT, VERSION

if TYPE_CHECKING:
    import onnx

OPSETS = (13, 25)
"""Lowest and highest ONNX opset the body is written for: Sigmoid, Tanh, Mul and Add keep their meaning between them."""


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
        helper.make_node("Sigmoid", [i], ["input_gate"]),
        helper.make_node("Sigmoid", [f], ["forget_gate"]),
        helper.make_node("Tanh", [z], ["candidate"]),
        helper.make_node("Mul", ["input_gate", "candidate"], ["written"]),
        helper.make_node("Mul", ["forget_gate", old], ["kept"]),
        helper.make_node("Add", ["written", "kept"], [OUTPUT]),
    ]
    text = "new = sigmoid(i) * tanh(z) + sigmoid(f) * old, elementwise: the gated memory update of LM2"
    return helper.make_function(DOMAIN, NAME, list(INPUTS), [OUTPUT], nodes, [helper.make_opsetid("", opset)], doc_string=text)


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
