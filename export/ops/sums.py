"""ai.lm2::BlockSums in ONNX files: x (b, t, d) with the sums of its blocks of 32 appended, (b, t, d + d / 32). Knows the onnx package only.

4-bit exports had one for each input of a matrix before QLinear (qlinear.py); the library keeps its kernel for them. The function body is three standard operators.
"""

from typing import TYPE_CHECKING

from . import DOMAIN

if TYPE_CHECKING:
    import onnx

NAME, BLOCK = "BlockSums", 32


def function(opset: int) -> "onnx.FunctionProto":
    """The model-local function for a model at ONNX opset `opset`, 18 or later (its body must have the model's)."""
    from onnx import helper

    nodes = [
        helper.make_node("Constant", [], ["shape"], value_ints=[0, 0, -1, BLOCK]),
        helper.make_node("Constant", [], ["last"], value_ints=[-1]),
        helper.make_node("Reshape", ["x", "shape"], ["blocks"]),
        helper.make_node("ReduceSum", ["blocks", "last"], ["sums"], keepdims=0),
        helper.make_node("Concat", ["x", "sums"], ["y"], axis=-1),
    ]
    text = "x with the sums of its blocks of 32 numbers appended"
    return helper.make_function(DOMAIN, NAME, ["x"], ["y"], nodes, [helper.make_opsetid("", opset)], doc_string=text)
