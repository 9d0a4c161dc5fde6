"""Why packed.py exists: one matrix product in three memory layouts, at decode (1 row) and prefill (256 and 512 rows), float32 on CPU.

    python benchmarks/linear_layouts.py [--threads 2]

Shapes are SmolLM2's. Decode is given in GB/s of weights, over enough distinct matrices to defeat the cache; prefill in GFLOP/s.
"""

import argparse
import sys
import time

from common import command, machine, require_close, table, versions

SHAPES = {"qkv": (960, 576), "o": (576, 576), "gate+up": (3072, 576), "down": (576, 1536), "head": (49152, 576)}
BYTES = 400_000_000


def best_seconds(call, weights) -> float:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        for w in weights:
            call(w)
        times.append((time.perf_counter() - start) / len(weights))
    return min(times)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    threads = parser.parse_args().threads
    import torch
    import torch.nn.functional as F

    from lm2.models.packed import PackedLinear

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    rows = []
    with torch.inference_mode():
        for name, (out, inp) in SHAPES.items():
            count = max(2, min(60, BYTES // (4 * out * inp)))
            plain = [torch.nn.Linear(inp, out, bias=False) for _ in range(count)]
            columns = [p.weight.t().contiguous().t() for p in plain]
            packed = [PackedLinear(p) for p in plain]
            for t in (1, 256, 512):
                if t > 1 and name == "head":
                    continue
                x = torch.randn(t, inp)
                cells, want = [], x.double() @ plain[0].weight.double().T
                for made in (F.linear(x, plain[0].weight), F.linear(x, columns[0]), packed[0](x)):
                    require_close(f"a product of {t} rows by {name}", made, want, 1e-5)
                for seconds in (
                    best_seconds(lambda p, x=x: F.linear(x, p.weight), plain),
                    best_seconds(lambda w, x=x: F.linear(x, w), columns),
                    best_seconds(lambda p, x=x: p(x), packed),
                ):
                    cells.append(f"{4e-9 * out * inp / seconds:.1f} GB/s" if t == 1 else f"{2e-9 * t * out * inp / seconds:.0f} GFLOP/s")
                rows.append([f"{name} {out}x{inp}", str(t), *cells])
                print(rows[-1], file=sys.stderr)
    print(f"`{command()}` on {machine()}; {threads} threads; {versions('torch')}; seed 0, best of 5\n")
    print(table(["matrix", "rows", "row-major (torch's default)", "column-major", "oneDNN blocked"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
