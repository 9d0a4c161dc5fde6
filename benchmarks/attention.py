"""ai.lm2::ChunkAttention beside ONNX Runtime's GroupQueryAttention (a window) and MultiHeadAttention (a memory's bank), as ratios of medians.

    python benchmarks/attention.py [--rows 1] [--threads 1] [--repeats 15] [--megabytes 48]

Sizes are SmolLM2-135M's, 9 heads over 3 of width 64, and a bank's of 3 heads of width 128, whose keys are divided by sqrt(e) already; once with a bias.
Each graph holds several nodes with caches of their own, about --megabytes of keys and values, or one node where that is less: so they are read from
where so many bytes lie. Keys and values are written in place. Runs alternate; the median of each side counts. Nothing is timed before both agree with
float64 to 1e-5. With one thread the clock is the thread's own processor time, with more it is the wall's.
"""

import argparse
import sys

from common import command, machine, medians, one_operator, require_close, table, versions

SIZES = (("window", 256), ("window", 1024), ("bank", 512), ("bank", 2048), ("bank, bias", 512), ("bank, bias", 2048))
"""What is read, and how many rows of it."""
HEADS = {"window": (9, 3, 64), "bank": (3, 3, 128)}
"""Query heads, key/value heads, width."""


def call(rng, kind, past, rows):
    """The inputs of one node, and its scale."""
    import numpy as np

    from lm2.export.ops.chunk_attention import NO_BIAS, NO_TURN, Call

    h, k, e = HEADS[kind.split(",")[0]]
    draw = lambda *shape: rng.standard_normal(shape, dtype=np.float32)  # noqa: E731
    length = np.array([past])
    if kind == "window":
        angles = np.outer(np.arange(past + rows), 10000.0 ** -(np.arange(e // 2) / (e // 2)))
        caches = [draw(1, k, past + rows, e) for _ in range(2)]
        return Call(draw(1, rows, (h + 2 * k) * e), *caches, length, np.float32(np.cos(angles)), np.float32(np.sin(angles)), NO_BIAS), 0.0
    bias = draw(1, 1, rows, past) if kind.endswith("bias") else NO_BIAS
    return Call(draw(1, rows, h * e), draw(1, k, past, e) / np.float32(e**0.5), draw(1, k, past, e), length, NO_TURN, NO_TURN, bias), 1.0


def graphs(kind, given, count):
    """The two models, by operator. Node n has caches and, in the bank, its own x; what else it needs is the same for all."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    from lm2.export.ops import DOMAIN
    from lm2.export.ops.chunk_attention_body import function, node

    h, k, _ = HEADS[kind.split(",")[0]]
    held = {"past_length": given.past_length, "cos": given.cos, "sin": given.sin, "bias": given.bias}
    past, rows = int(given.past_length[0]), given.x.shape[1]
    held |= {"lengths": np.array([past + rows - 1], np.int32), "total": np.array(past + rows, np.int32)}
    other = "GroupQueryAttention" if kind == "window" else "MultiHeadAttention"
    nodes = {NAME: [], other: []}
    for n in range(count):
        caches, made = [f"k{n}", f"v{n}"], [f"y{n}", *([f"pk{n}", f"pv{n}"] if kind == "window" else [])]
        nodes[NAME].append(node(("x", *caches, "past_length", "cos", "sin", "bias"), tuple(made), h, 0.0 if kind == "window" else 1.0))
        if kind == "window":
            inputs, facts = ["x", "", "", *caches, "lengths", "total", "cos", "sin"], {"num_heads": h, "kv_num_heads": k, "do_rotary": 1}
        else:
            inputs, facts = ["x", *caches, *(["", "", "bias"] if kind.endswith("bias") else [])], {"num_heads": h, "scale": 1.0}
        nodes[other].append(helper.make_node(other, inputs, made, domain="com.microsoft", **facts))
    imports, made = [helper.make_opsetid(*pair) for pair in (("", 23), (DOMAIN, 1), ("com.microsoft", 1))], {}
    for name, chosen in nodes.items():
        value = [helper.make_tensor_value_info(v, TensorProto.FLOAT, None) for v in ("x", *(f"{c}{n}" for n in range(count) for c in "kv"))]
        outs = [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for one in chosen for o in one.output if o]
        used = {i for one in chosen for i in one.input}
        constants = [numpy_helper.from_array(a, n) for n, a in held.items() if n in used]
        made[name] = helper.make_model(
            helper.make_graph(chosen, name, value, outs, constants), opset_imports=imports, functions=[function(23)], ir_version=10
        )
    return made


NAME = "ChunkAttention"


def bound(model, library, given, count, threads):
    """A function that runs the model once and returns its first output. present_* is past_*'s memory."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.register_custom_ops_library(str(library))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding, value = session.io_binding(), onnxruntime.OrtValue.ortvalue_from_numpy
    binding.bind_ortvalue_input("x", value(given.x))
    h = given.x.shape[-1] // given.past_key.shape[-1] - (2 * given.past_key.shape[1] if len(session.get_outputs()) > count else 0)
    first = value(np.zeros((*given.x.shape[:2], h * given.past_key.shape[-1]), np.float32))
    for n in range(count):
        for c, cache in (("k", given.past_key), ("v", given.past_value)):
            held = value(cache.copy())
            binding.bind_ortvalue_input(f"{c}{n}", held)
            if len(session.get_outputs()) > count:
                binding.bind_ortvalue_output(f"p{c}{n}", held)
        binding.bind_ortvalue_output(f"y{n}", first if n == 0 else value(first.numpy()))

    def run():
        session.run_with_iobinding(binding)
        return first

    return run


def compare(kind, past, library, args):
    """Median seconds of one node, by operator."""
    import numpy as np

    from lm2.export.ops.chunk_attention import exact

    given, scale = call(np.random.default_rng(0), kind, past, args.rows)
    bytes_read = 2 * given.past_key.nbytes
    count = max(1, int(args.megabytes * 1e6 / bytes_read))
    models = graphs(kind, given, count)
    runs = {name: bound(model, library, given, count, args.threads) for name, model in models.items()}
    want, _ = exact(given, HEADS[kind.split(",")[0]][0], scale)
    for name, run in runs.items():
        require_close(f"{name} ({kind}, {past})", run().numpy(), want, 1e-5)
    times = medians(runs, args.repeats, args.threads)
    return [times[name] / count for name in models], bytes_read


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args = one_operator(parser).parse_args()
    from lm2.export.ops.build import library

    path, rows = library(), []
    for kind, past in SIZES:
        (own, other), size = compare(kind, past, path, args)
        rows.append([kind, str(past), f"{own * 1e6:.1f}", f"{size / own / 1e9:.1f}", f"{other * 1e6:.1f}", f"{other / own:.2f}x"])
        print(f"{kind} {past} done", file=sys.stderr)
    print(f"`{command()}`  \n{machine()}, {versions('onnxruntime', 'numpy')}; {args.rows} row(s), {args.threads} thread(s)\n")
    print(table(["what is read", "rows of it", "ChunkAttention, µs", "GB/s of keys and values", "ONNX Runtime, µs", "ONNX Runtime / ChunkAttention"], rows))


if __name__ == "__main__":
    main()
