"""int8 and int4 exports as they were with ai.lm2::QLinear version 1: matrices row by row, q (o, k, 16) or (o, k, 32), d and m (o, k), no tiles."""

BODY = """<domain: "ai.lm2", opset_import: ["": %d]>
QLinear <bits> (x, q, d, m) => (y) {
    eight = Constant <value_int = 8> ()
    ones = Constant <value_int = 255> ()
    first = Constant <value_ints = [0]> ()
    last = Constant <value_ints = [-1]> ()
    block = Constant <value_ints = [32]> ()
    middle = Constant <value_ints = [1]> ()
    bits = Constant <value_int: int = @bits> ()
    fewer = Sub (eight, bits)
    shift = Cast <to = 2> (fewer)
    all_bits = Cast <to = 2> (ones)
    mask = BitShift <direction = "RIGHT"> (all_bits, shift)
    bytes = Cast <to = 2> (q)
    low = BitwiseAnd (bytes, mask)
    high = BitShift <direction = "RIGHT"> (bytes, shift)
    halves = Concat <axis = -1> (low, high)
    unsigned = Slice (halves, first, block, last)
    columns = Transpose <perm = [1, 2, 0]> (unsigned)
    signed = Cast <to = 3> (columns)
    numbers = Cast <to = 1> (signed)
    float_d = Cast <to = 1> (d)
    turned_d = Transpose <perm = [1, 0]> (float_d)
    wide_d = Unsqueeze (turned_d, middle)
    float_m = Cast <to = 1> (m)
    turned_m = Transpose <perm = [1, 0]> (float_m)
    wide_m = Unsqueeze (turned_m, middle)
    scaled = Mul (numbers, wide_d)
    blocks = Add (scaled, wide_m)
    outputs = Shape <start = 0, end = 1> (d)
    flat = Concat <axis = 0> (last, outputs)
    w = Reshape (blocks, flat)
    y = MatMul (x, w)
}"""


def rows_of(w):
    """W (a QMatrix) as version 1 has it: arrays q, d and m."""
    import numpy as np

    from lm2.export.ops.qlinear import scales, unpacked

    numbers, (d, m) = unpacked(w), scales(w)  # (o, k, 32), (o, k)
    q = (numbers[..., :16] | numbers[..., 16:] << 4).astype(np.uint8) if w.bits == 4 else numbers.astype(np.int8)
    return q, d, m[:1, :1] if w.m.size == 1 else m


def as_earlier(proto, ids="input_ids"):
    """Changes a model of an int8 or int4 export, or of one node, into what it was; `ids`: of the embedding's rows."""
    from onnx import AttributeProto, helper, numpy_helper, parser

    from lm2.export.ops.qlinear import NAME, QMatrix

    held, graphs = {}, [proto.graph]
    for graph in graphs:
        held |= {t.name: t for t in graph.initializer}
        graphs += [a.g for n in graph.node for a in n.attribute if a.type == AttributeProto.GRAPH]
    done = set()
    for node in (n for graph in graphs for n in graph.node if n.op_type == NAME):
        rows = next(a for a in node.attribute if a.name == "rows")
        if node.input[1] not in done:
            w = QMatrix(*(numpy_helper.to_array(held[name]) for name in node.input[1:]), rows.i)
            for name, array in zip(node.input[1:], rows_of(w), strict=True):
                held[name].CopyFrom(numpy_helper.from_array(array, name))
            done.add(node.input[1])
        node.attribute.remove(rows)
    for node in proto.graph.node:
        if node.op_type == "GatherND" and node.input[0].startswith("model.embed_tokens."):
            node.CopyFrom(helper.make_node("Gather", [node.input[0], ids], list(node.output), name=node.name))
    opset = next(o.version for o in proto.opset_import if o.domain == "")
    for function in proto.functions:
        if function.name == NAME:
            function.CopyFrom(parser.parse_function(BODY % opset))
    for imported in proto.opset_import:
        imported.version = 1 if imported.domain == "ai.lm2" else imported.version
    for entry in proto.metadata_props:
        entry.value = "4" if entry.key == "lm2.format" else entry.value
