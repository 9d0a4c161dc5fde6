"""Time of the gated memory update in ONNX Runtime: the fewest standard operators (Sigmoid, Tanh, Mul, Add) against the native kernel.

    python benchmarks/op_speed.py [--threads 1] [--repeats 15] [--types float32]

One graph holds 30 updates in a chain, each with gates of its own: with one set of gates for all, ONNX Runtime would compute the sigmoids once and
the standard operators would look faster than they are. Inputs and outputs are bound once. Runs alternate; the median of each side counts.
Gates are `cold` (every update reads its own arrays, from main memory when they are large) or `warm` (the updates' inputs are bound to the same three
arrays, which stay in cache as a matrix product's result would; the graph still has 90 different inputs). With one thread the clock is the thread's
own processor time, so that a busy machine changes little; with more it is the wall's. It times the update alone: in a whole model the update is a
small part of a step (docs/ops.md).
"""

import argparse
import itertools
import statistics
import sys
import time

from common import command, machine, require_close, table, versions

UPDATES, BATCH = 30, 1
SIZES = ((1, 576), (512, 576), (1, 2048), (512, 2048))


def chain(kind):
    """30 updates, each on the rows the one before wrote. Inputs old, i0, f0, z0, i1, ..."""
    from onnx import TensorProto, helper

    from lm2.export.ops.function import node, opset_import

    element = TensorProto.FLOAT if kind == "float32" else TensorProto.FLOAT16
    names = ["old", *(f"{gate}{k}" for k in range(UPDATES) for gate in "ifz")]
    nodes = [node(f"i{k}", f"f{k}", f"z{k}", f"new{k - 1}" if k else "old", f"new{k}") for k in range(UPDATES)]
    inputs = [helper.make_tensor_value_info(name, element, ["b", "t", "d"]) for name in names]
    outputs = [helper.make_tensor_value_info(f"new{UPDATES - 1}", element, ["b", "t", "d"])]
    graph = helper.make_graph(nodes, "updates", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23), opset_import()], functions=[standard()], ir_version=10)


def standard():
    """The update as a model-local function of Sigmoid, Tanh, Mul and Add: what a kernel has to beat. (The body of exported files spells the
    sigmoid out, which is slower and relatively right: docs/ops.md.)"""
    from onnx import helper

    from lm2.export.ops import DOMAIN, INPUTS, NAME, OUTPUT

    steps = (("Sigmoid", "i", "a"), ("Sigmoid", "f", "b"), ("Tanh", "z", "c"), ("Mul", "a c", "d"), ("Mul", "b old", "e"), ("Add", "d e", OUTPUT))
    nodes = [helper.make_node(op, given.split(), [made]) for op, given, made in steps]
    return helper.make_function(DOMAIN, NAME, list(INPUTS), [OUTPUT], nodes, [helper.make_opsetid("", 23)])


def bound(model, library, arrays, threads):
    """A session with its inputs and its output bound, as a function that runs it once."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if library is not None:
        options.register_custom_ops_library(str(library))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, value in arrays.items():
        binding.bind_ortvalue_input(name, value)
    first = arrays["old"].numpy()
    out = onnxruntime.OrtValue.ortvalue_from_shape_and_type(first.shape, first.dtype)
    binding.bind_ortvalue_output(f"new{UPDATES - 1}", out)
    def run():
        session.run_with_iobinding(binding)
        return out

    return run


def compare(kind, t, d, warm, library, threads, repeats):
    """Median seconds of one update: (standard operators, kernel). `warm` binds all updates' gates to three arrays."""
    import numpy as np
    import onnxruntime

    from lm2.export.ops.reference import gated_memory_update

    rng = np.random.default_rng(0)
    model = chain(kind)
    made = {}
    for i in model.graph.input:
        key = i.name[0] if warm and i.name != "old" else i.name
        if key not in made:
            made[key] = onnxruntime.OrtValue.ortvalue_from_numpy(rng.standard_normal((BATCH, t, d), dtype=np.float32).astype(kind))
    arrays = {i.name: made.get(i.name) or made[i.name[0]] for i in model.graph.input}
    runs = [bound(model, None, arrays, threads), bound(model, library, arrays, threads)]
    want = arrays["old"].numpy()
    for k in range(UPDATES):
        want = gated_memory_update(*(arrays[f"{gate}{k}"].numpy() for gate in "ifz"), want)
    for what, run in zip(("a chain of standard operators", "the kernel"), runs, strict=True):
        require_close(f"{what} ({kind}, T={t}, d={d})", run().numpy(), want, 1e-5 if kind == "float32" else 5e-3)
    inner = max(1, 200_000 // (t * d * 8))
    times = ([], [])
    clock = time.thread_time if threads == 1 else time.perf_counter
    for repeat in range(repeats + 2):
        for run, found in zip(runs, times, strict=True):
            start = clock()
            for _ in range(inner):
                run()
            if repeat >= 2:
                found.append((clock() - start) / inner / UPDATES)
    return statistics.median(times[0]), statistics.median(times[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--types", default="float32,float16")
    args = parser.parse_args()
    from lm2.export.ops.build import library

    path, rows = library(), []
    for kind, warm, (t, d) in itertools.product(args.types.split(","), (False, True), SIZES):
        standard, kernel = compare(kind, t, d, warm, path, args.threads, args.repeats)
        gates = "warm" if warm else "cold"
        rows.append([kind, str(t), str(d), gates, f"{standard * 1e6:.1f}", f"{kernel * 1e6:.1f}", f"{standard / kernel:.1f}x"])
        print(f"{kind} T={t} d={d} {gates} done", file=sys.stderr)
    print(f"`{command()}`  \n{machine()}, {versions('onnxruntime', 'numpy')}; {args.threads} thread(s), {UPDATES} updates, batch {BATCH}\n")
    print(table(["type", "T", "d", "gates", "standard ops, µs", "kernel, µs", "ratio"], rows))


if __name__ == "__main__":
    main()
