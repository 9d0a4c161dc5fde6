"""What the tests of ai.lm2::ChunkAttention share: random calls, one-node models, libraries and their levels, comparisons."""

import functools

import numpy as np
from op_kit import kernel_at


def call(rng, t, past, heads=4, groups=2, e=16, rows=40, writes=True, turns=None, bias=None, tables=None):
    """A random Call of len(past) sequences, or of one; past: filled rows, an int for one sequence. Rows of the caches that are not filled hold numbers too.

    turns: pairs that turn, e // 2 by default. bias: its shape.
    """
    from lm2.export.ops.chunk_attention import NO_BIAS, Call

    past = np.atleast_1d(np.asarray(past, np.int64))
    draw = functools.partial(_draw, rng)
    cos_sin = np.exp(1j * rng.uniform(0, 7, (tables or rows, e // 2 if turns is None else turns)))
    wide = (heads + 2 * groups if writes else heads) * e
    caches = [draw(len(past), groups, rows, e) for _ in range(2)]
    tables = [np.ascontiguousarray(part, np.float32) for part in (cos_sin.real, cos_sin.imag)]
    return Call(draw(len(past), t, wide), *caches, past, *tables, NO_BIAS if bias is None else draw(*bias))


def _draw(rng, *shape):
    return (rng.standard_normal(shape) * 1.5).astype(np.float32)


def feed(given):
    return given._asdict()


def model(heads, opset=24, scale=0.0, outputs=3, shapes=None, kinds=None, node=None):
    """A model of one node; inputs of any shape. kinds: other types for some inputs, by name."""
    from onnx import helper

    from lm2.export.ops import DOMAIN, chunk_attention_body
    from lm2.export.ops.chunk_attention import INPUTS, OUTPUTS

    kinds, shapes = kinds or {}, shapes or {}

    def value(name):
        kind = np.dtype(kinds.get(name, "int64" if name == "past_length" else "float32"))
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(kind), shapes.get(name))

    made = OUTPUTS[:outputs]
    one = node or chunk_attention_body.node(INPUTS, made, heads, scale)
    graph = helper.make_graph([one], "one", [value(n) for n in INPUTS], [value(n) for n in made])
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=imports, functions=[chunk_attention_body.function(opset)], ir_version=10)


kernel = functools.partial(kernel_at, "LM2_ATTENTION")
"""op_kit.kernel_at for this operator."""


def near(got, given, heads, scale=0.0):
    """y is within the bound of docs/ops.md; returns the largest part of it that was needed."""
    from lm2.export.ops.chunk_attention import exact

    want, room = exact(given, heads, scale)
    room = np.repeat(room, given.past_key.shape[-1], -1)
    off = np.abs(got - want)
    assert (off <= room).all(), (off / room).max()
    return float((off / np.maximum(room, 1e-30)).max()) if off.size else 0.0
