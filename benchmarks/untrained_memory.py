"""How much an untrained, warm-started memory disturbs its backbone, by how loud it is heard (the read vector s of the gated cell).

    python benchmarks/untrained_memory.py [--model smollm2] [--chunks 8]

Perplexity over chunks 2..N of one text, memory carried across chunks, against the memory reset at every chunk border.
"""

import argparse
import sys

from common import command, long_text, machine, table, versions

SCALES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--chunks", type=int, default=8)
    a = parser.parse_args()
    import numpy as np

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
    rows = [["reset at every chunk", f"{off:.3f}", ""]]
    for s in SCALES:
        for i in model.config.memory.layers:
            backend.model.layers[i].memory.scale.data.fill_(s)
        on = perplexity(carry=True)
        rows.append([f"s = {s:g}", f"{on:.3f}", f"{100 * (on / off - 1):+.2f}%"])
        print(rows[-1], file=sys.stderr)
    print(f"`{command()}` on {machine()}; {versions('torch')}; {len(ids)} tokens of Python's language reference\n")
    print(table(["memory", "perplexity", "against reset"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
