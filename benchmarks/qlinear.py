"""ai.lm2::QLinear beside ONNX Runtime's MatMulNBits (blocks of 32, accuracy level 4) and MatMul in float32, as ratios of medians.

    python benchmarks/qlinear.py [--bits 4] [--rows 1] [--threads 1] [--repeats 15]

Each graph holds several matrices of one size, all of a symmetric grid so that the three multiply by the same numbers; about --megabytes of blocks, or
one matrix where it is larger. So weights come from where so many bytes lie: from memory when that is more than the last cache. Runs alternate;
the median of each side counts. Nothing is timed before the results agree: QLinear with the exact product to 1e-4, MatMulNBits, which rounds its
inputs to 8 bits, to 2e-2. With one thread the clock is the thread's own processor time, with more it is the wall's.
"""

import argparse
import sys

from common import command, machine, medians, one_operator, require_close, table, versions

SIZES = ((576, 576), (960, 576), (3072, 576), (576, 1536), (49152, 576))
"""Outputs and inputs: those of SmolLM2-135M."""


def graphs(rng, outputs, inputs, count, bits):
    """The three models, by name, and the exact product's matrices (o, i)."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    from lm2.export.ops import DOMAIN
    from lm2.export.ops.qlinear import VERSION, function, node, pack, values

    nodes, held, exact = {"QLinear": [], "MatMulNBits": [], "MatMul": []}, {"QLinear": [], "MatMulNBits": [], "MatMul": []}, []
    blocks, half = inputs // 32, 1 << (bits - 1)
    for n in range(count):
        numbers = rng.integers(0, 2 * half, (outputs, blocks, 32))
        d = (rng.random((outputs, blocks)) * 0.01 + 0.001).astype(np.float16)
        own = pack(numbers, d, d.astype(np.float32) * -8, 4) if bits == 4 else pack(numbers - half, d, None, 8)
        pairs = (numbers[..., ::2] | numbers[..., 1::2] << 4 if bits == 4 else numbers).astype(np.uint8)
        given = {
            "QLinear": {"q": own.q, "d": own.d, "m": own.m},
            "MatMulNBits": {"b": pairs, "s": d.astype(np.float32)},
            "MatMul": {"w": np.ascontiguousarray(values(own).T.astype(np.float32))},
        }
        for kind, arrays in given.items():
            held[kind] += [numpy_helper.from_array(a, f"{name}{n}") for name, a in arrays.items()]
        nodes["QLinear"].append(node("x", f"q{n}", f"d{n}", f"m{n}", f"y{n}", bits, outputs))
        facts = {"K": inputs, "N": outputs, "bits": bits, "block_size": 32, "accuracy_level": 4}
        nodes["MatMulNBits"].append(helper.make_node("MatMulNBits", ["x", f"b{n}", f"s{n}"], [f"y{n}"], domain="com.microsoft", **facts))
        nodes["MatMul"].append(helper.make_node("MatMul", ["x", f"w{n}"], [f"y{n}"]))
        exact.append(values(own) if n == 0 else None)
    imports = [helper.make_opsetid(*pair) for pair in (("", 23), (DOMAIN, VERSION), ("com.microsoft", 1))]
    value, made = helper.make_tensor_value_info, {}
    for kind in nodes:
        outs = [value(f"y{n}", TensorProto.FLOAT, ["t", outputs]) for n in range(count)]
        graph = helper.make_graph(nodes[kind], kind, [value("x", TensorProto.FLOAT, ["t", inputs])], outs, held[kind])
        made[kind] = helper.make_model(graph, opset_imports=imports, functions=[function(23)], ir_version=10)
    return made, exact[0]


def bound(model, library, x, threads):
    """A function that runs the model once and returns its first output; outputs are bound, so nothing is copied."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.register_custom_ops_library(str(library))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", onnxruntime.OrtValue.ortvalue_from_numpy(x))
    for y in session.get_outputs():
        binding.bind_output(y.name)

    def run():
        session.run_with_iobinding(binding)
        return binding.get_outputs()[0]

    return run


def compare(outputs, inputs, library, args):
    """Median seconds of one product, by name."""
    import numpy as np

    rng = np.random.default_rng(0)
    count = max(1, int(args.megabytes * 1e6 / (outputs * inputs * (args.bits + 1) / 8)))
    models, exact = graphs(rng, outputs, inputs, count, args.bits)
    x = rng.standard_normal((args.rows, inputs)).astype(np.float32)
    runs = {kind: bound(model, library, x, args.threads) for kind, model in models.items()}
    for kind, gate in (("QLinear", 1e-4), ("MatMulNBits", 2e-2), ("MatMul", 1e-5)):
        require_close(f"{kind} ({outputs}, {inputs})", runs[kind]().numpy(), x.astype(np.float64) @ exact.T, gate)
    return {kind: median / count for kind, median in medians(runs, args.repeats, args.threads).items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, choices=(4, 8), default=4)
    args = one_operator(parser).parse_args()
    from lm2.export.ops.build import library

    path, rows = library(), []
    for outputs, inputs in SIZES:
        found = compare(outputs, inputs, path, args)
        own, blocks, floats = found["QLinear"], found["MatMulNBits"], found["MatMul"]
        speed = outputs * inputs * (args.bits + (1 if args.bits == 4 else 0.5)) / 8 / own / 1e9
        rows.append([str(outputs), str(inputs), f"{own * 1e6:.1f}", f"{speed:.1f}", f"{blocks / own:.2f}x", f"{floats / own:.2f}x"])
        print(f"{outputs} x {inputs} done", file=sys.stderr)
    print(
        f"`{command()}`  \n{machine()}, {versions('onnxruntime', 'numpy')}; {args.bits} bits, {args.rows} row(s), {args.threads} thread(s)\n"
    )
    print(table(["outputs", "inputs", "QLinear, µs", "GB/s of blocks", "MatMulNBits / QLinear", "MatMul float32 / QLinear"], rows))


if __name__ == "__main__":
    main()
