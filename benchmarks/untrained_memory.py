"""How much an untrained, warm-started memory disturbs its backbone, by how loud it is heard.

    python benchmarks/untrained_memory.py [--model smollm2] [--chunks 8]

Perplexity over chunks 2..N of one text, memory carried across chunks, against the memory reset at every chunk border. Two ways to be quiet:
the output projection is the attention's own times the factor (what `lm2 convert --memory-scale` does; what is written is quieter too), or the read
vector s holds it (what is written keeps its full strength).
"""

import argparse
import os
import sys

from common import command, long_text, machine, table, versions

SCALES = (1.0, 0.3, 0.1, 0.03, 0.01, 2.0**-7, 0.003)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--chunks", type=int, default=8)
    a = parser.parse_args()
    os.environ["LM2_KERNELS"] = "reference"  # plain layers, whose weights can be changed
    import numpy as np
    import torch

    import lm2

    model = lm2.load(a.model, backend="torch", device="cpu", dtype="float32")
    backend, size = model.backend, model.config.memory.chunk
    text = long_text()
    ids = np.array(model.encode(text[: size * a.chunks * 8]))[: size * a.chunks]

    def perplexity(carry: bool) -> float:
        memory, losses = None, []
        for c in range(a.chunks):
            tokens = ids[c * size : (c + 1) * size]
            logits, chunk = backend.extend(tokens, backend.start(1, memory if carry else None), all_logits=True)
            z = logits[0, :-1].astype(np.float64)  # (t - 1, v)
            top = z.max(-1, keepdims=True)
            losses.append((np.log(np.exp(z - top).sum(-1)) + top[:, 0] - z[np.arange(len(z)), tokens[1:]]).mean())
            memory = backend.commit(chunk)
        return float(np.exp(np.mean(losses[1:])))

    off = perplexity(carry=False)
    rows = [["reset at every chunk", f"{off:.3f}", "", f"{off:.3f}", ""]]
    for factor in SCALES:
        row = [f"{factor:g}"]
        for quiet, s in ((factor, 1.0), (1.0, factor)):
            for i in model.config.memory.layers:
                layer = backend.model.layers[i]
                layer.memory.o_proj.weight.data.copy_(layer.self_attn.o_proj.weight * quiet)
                layer.memory.scale = torch.nn.Parameter(torch.full((model.config.hidden_size,), s), requires_grad=False)
            on = perplexity(carry=True)
            row += [f"{on:.3f}", f"{100 * (on / off - 1):+.2f}%"]
        rows.append(row)
        print(row, file=sys.stderr)
    print(f"`{command()}` on {machine()}; {versions('torch')}; {len(ids)} tokens of Python's language reference\n")
    print(table(["factor", "in Wo: perplexity", "against reset", "in s: perplexity", "against reset"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
