"""ai.lm2::ChunkAttention in ONNX files: the node and its function body in standard operators. Knows the onnx package only.

One body serves both forms of x: without keys and values to write, everything about them has 0 heads. Axes as in chunk_attention.py.
"""

from typing import TYPE_CHECKING

from ...models.errors import LM2Error
from . import DOMAIN
from .chunk_attention import INPUTS, NAME, OUTPUTS

if TYPE_CHECKING:
    import onnx

OPSETS = (13, 25)
"""Lowest and highest ONNX opset the body is written for."""
LOWEST = -3.4028234663852886e38
"""The score of a key that is not seen."""


class OpsetError(LM2Error, ValueError):
    """The body is not written for the opset asked for."""


class _Body:
    """Nodes one after another; every method returns the name of a value."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.held: dict[tuple[int, ...], str] = {}

    def add(self, op: str, *given: str, made: str = "", **attributes: object) -> str:
        from onnx import helper

        name = made or f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(given), [name], **attributes))
        return name

    def ints(self, *numbers: int) -> str:
        if numbers not in self.held:
            self.held[numbers] = self.add("Constant", value_ints=list(numbers))
        return self.held[numbers]

    def attribute(self, name: str, kind: str) -> str:
        """The node's attribute as a scalar; kind `INT` or `FLOAT`."""
        from onnx import AttributeProto

        value = self.add("Constant")
        self.nodes[-1].attribute.append(
            AttributeProto(name=f"value_{kind.lower()}", type=AttributeProto.AttributeType.Value(kind), ref_attr_name=name)
        )
        return value

    def size(self, shape: str, axis: int) -> str:
        return self.add("Slice", shape, self.ints(axis), self.ints(axis + 1))  # (1)

    def part(self, x: str, start: str, end: str, axis: int) -> str:
        return self.add("Slice", x, start, end, self.ints(axis))

    def shaped(self, x: str, *sizes: str) -> str:
        """No size is 0 but where x's own is at the same place, which is what 0 asks for."""
        return self.add("Reshape", x, self.add("Concat", *sizes, axis=0))

    def line(self, count: str) -> str:
        """0 .. count - 1."""
        start, step = (self.add("Squeeze", self.ints(n)) for n in (0, 1))
        return self.add("Range", start, self.add("Squeeze", count), step)

    def turned(self, x: str, cos: str, sin: str, w: str, e: str) -> str:
        """x (b, t, heads, e) by cos, sin (b or 1, t, 1, w)."""
        double = self.add("Add", w, w)
        a, c, rest = (self.part(x, *ends, 3) for ends in ((self.ints(0), w), (w, double), (double, e)))
        first = self.add("Sub", self.add("Mul", a, cos), self.add("Mul", c, sin))
        second = self.add("Add", self.add("Mul", c, cos), self.add("Mul", a, sin))
        return self.add("Concat", first, second, rest, axis=3)


def function(opset: int) -> "onnx.FunctionProto":
    """The model-local function for a model at ONNX opset `opset` (its body must have the model's). Raises OpsetError outside OPSETS."""
    from onnx import helper

    if not OPSETS[0] <= opset <= OPSETS[1]:
        raise OpsetError(f"{DOMAIN}::{NAME}: no function body for ONNX opset {opset}; export with an opset from {OPSETS[0]} to {OPSETS[1]}")
    g = _Body()
    zero, one = g.ints(0), g.ints(1)
    outer, inner = g.add("Shape", "x"), g.add("Shape", "past_key")
    b, t, width = (g.size(outer, n) for n in range(3))
    k, e = g.size(inner, 1), g.size(inner, 3)
    h = g.add("Unsqueeze", g.attribute("heads", "INT"), zero)
    w = g.size(g.add("Shape", "cos"), 1)
    own = g.add("Mul", h, e)  # numbers of the queries
    more = g.add("Sub", g.add("Div", width, e), h)  # 2 k or 0
    written = g.add("Div", more, g.ints(2))  # k or 0

    past = g.add("Unsqueeze", "past_length", one)  # (b or 1, 1)
    steps = g.line(t)  # (t)
    positions = g.add("Add", past, steps)  # (b or 1, t)
    last = g.add("Sub", g.size(g.add("Shape", "cos"), 0), one)
    turns = g.add("Min", positions, last)
    cos, sin = (g.add("Unsqueeze", g.add("Gather", table, turns), g.ints(2)) for table in ("cos", "sin"))  # (b or 1, t, 1, w)

    q = g.turned(g.shaped(g.part("x", zero, own, 2), b, t, h, e), cos, sin, w, e)  # (b, t, h, e)
    rest = g.shaped(g.part("x", own, width, 2), b, t, more, e)  # (b, t, 2k or 0, e)
    key = g.turned(g.part(rest, zero, written, 2), cos, sin, w, e)
    fresh = [g.add("Transpose", x, perm=[0, 2, 1, 3]) for x in (key, g.part(rest, written, more, 2))]  # (b, k or 0, t, e)

    grid = g.add("Concat", b, written, t, one, axis=0)
    lines = [
        g.add("Unsqueeze", g.line(b), g.ints(1, 2, 3)),
        g.add("Unsqueeze", g.line(written), g.ints(0, 2, 3)),
        g.add("Unsqueeze", positions, g.ints(1, 3)),
    ]
    index = g.add("Concat", *(g.add("Expand", line, grid) for line in lines), axis=3)  # (b, k or 0, t, 3)
    for name, x in zip(("key", "value"), fresh, strict=True):
        g.add("ScatterND", f"past_{name}", index, x, made=f"present_{name}")

    writes = g.add("Div", written, k)  # 1 or 0
    longest = g.add("Unsqueeze", g.add("ReduceMax", "past_length", keepdims=0), zero)
    end = g.add("Max", g.add("Add", longest, g.add("Mul", t, writes)), one)
    keys, values = (
        g.add("ScatterND", g.part(f"past_{name}", zero, end, 2), index, x) for name, x in zip(("key", "value"), fresh, strict=True)
    )  # (b, k, s, e)
    limit = g.add("Add", past, g.add("Mul", g.add("Add", steps, one), writes))  # (b or 1, t): keys that a row sees
    seen = g.add("Less", g.line(end), g.add("Unsqueeze", limit, g.ints(1, 3)))  # (b or 1, 1, t, s)

    given = g.attribute("scale", "FLOAT")
    root = g.add("Reciprocal", g.add("Sqrt", g.add("Cast", e, to=1)))
    scale = g.add("Where", g.add("Equal", given, g.add("Constant", value_float=0.0)), root, given)
    q = g.add("Transpose", g.add("Mul", q, scale), perm=[0, 2, 1, 3])  # (b, h, t, e)
    group = g.add("Div", g.add("Mul", h, t), k)
    products = g.add("MatMul", g.shaped(q, b, k, group, e), g.add("Transpose", keys, perm=[0, 1, 3, 2]))  # (b, k, g t, s)
    scores = g.add("Add", g.shaped(products, b, h, t, end), g.part("bias", zero, end, 3))  # (b, h, t, s)
    weights = g.add("Softmax", g.add("Where", seen, scores, g.add("Constant", value_float=LOWEST)), axis=-1)
    weights = g.add("Where", seen, weights, g.add("Constant", value_float=0.0))
    y = g.add("MatMul", g.shaped(weights, b, k, group, end), values)  # (b, k, g t, e)
    y = g.add("Transpose", g.shaped(y, b, h, t, e), perm=[0, 2, 1, 3])  # (b, t, h, e)
    g.add("Reshape", y, g.add("Concat", b, t, own, axis=0), made=OUTPUTS[0])
    return helper.make_function(
        DOMAIN, NAME, list(INPUTS), list(OUTPUTS), g.nodes, [helper.make_opsetid("", opset)], attributes=["heads"],
        attribute_protos=[helper.make_attribute("scale", 0.0)], doc_string="attention of a call's queries to caches, which take its keys and values",
    )  # fmt: skip


def node(given: tuple[str, ...], made: tuple[str, ...], heads: int, scale: float = 0.0, name: str = "") -> "onnx.NodeProto":
    """The node, by the names of its seven inputs and its one or three outputs in the graph; outputs that nobody wants are there without a name.

    The model imports the domain and carries `function(...)`.
    """
    from onnx import helper

    return helper.make_node(NAME, list(given), [*made, *[""] * (len(OUTPUTS) - len(made))], name=name or None, domain=DOMAIN, heads=heads, scale=scale)
