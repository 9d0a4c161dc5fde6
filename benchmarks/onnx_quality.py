"""How much quantised ONNX models of one backbone differ from its float32: same likeliest token and KL divergence, over texts of several kinds.

    python benchmarks/onnx_quality.py [--folder build/onnx_speed] [--tokens 384] [--models off-int8,off-int4,genai-int8,genai-int4]

The models are those of onnx_speed.py (`python benchmarks/onnx_speed.py --prepare` makes them); memory off, so that onnxruntime-genai's can be judged too. Each
text is read from its beginning in one call, with the operator library registered (`lm2 build-ops`), or without: --body.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import onnx_files
from common import command, long_text, machine, table, versions

ROOT = Path(__file__).parent.parent
WIDTH = 64  # of a head, which genai's builder leaves open
KINDS = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


def texts():
    """Name and text: written English, a licence, prose with tables, a reference manual at three places, a program."""
    from lm2.export.cost import TEXT

    manual = long_text()
    yield "prose", TEXT
    yield "licence", (ROOT / "LICENSE").read_text(encoding="utf-8")
    yield "tables", (ROOT / "docs" / "mlx.md").read_text(encoding="utf-8")
    for i in range(3):
        yield f"manual {i + 1}", manual[i * 60_000 : i * 60_000 + 4_000]
    yield "program", (ROOT / "models" / "llama.py").read_text(encoding="utf-8")


def log_probabilities(folder, batches, library=None):
    """(t, v) float64 of each text's ids (1, t), by the model.onnx of an LM2 export or of onnxruntime-genai's builder; library: of LM2's operators."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    if library:
        options.register_custom_ops_library(str(library))
    session = ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    empty = {}
    for value in session.get_inputs():
        sizes = {"batch": 1, "batch_size": 1, "past_sequence_length": 0, "window": max(ids.shape[1] for ids in batches)}
        dims = [sizes.get(n, WIDTH) if isinstance(n, str) else n for n in value.shape]
        empty[value.name] = np.zeros(dims, KINDS[value.type])
    for ids in batches:
        feeds = empty | {"input_ids": ids}
        more = {"new_chunk": np.array([1]), "logits_from": np.array([0]), "attention_mask": np.ones_like(ids)}
        logits = session.run(["logits"], feeds | {k: v for k, v in more.items() if k in feeds})[0][0].astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        yield logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("build/onnx_speed"))
    parser.add_argument("--tokens", type=int, default=384)
    parser.add_argument("--models", default="off-int8,off-int4,genai-int8,genai-int4")
    parser.add_argument("--body", action="store_true", help="Without the operator library.")
    parser.add_argument("--json", action="store_true")
    a = parser.parse_args()
    from lm2.export.ops.build import library
    from lm2.models.text.tokenizer import Tokenizer

    kernels = None if a.body else library()
    tokenizer = Tokenizer.load(a.folder / "on")
    kinds = {name: np.array([list(tokenizer.encode(text))[: a.tokens]]) for name, text in texts()}
    want = list(log_probabilities(a.folder / "off-fp32", kinds.values()))
    rows, report = [], {}
    for model in a.models.split(","):
        tops, kls = [], []
        for x, y in zip(want, log_probabilities(a.folder / model, kinds.values(), kernels), strict=True):
            tops.append(x.argmax(-1) == y.argmax(-1))
            kls.append((np.exp(x) * (x - y)).sum(-1))
        each = [t.mean() for t in tops]
        top, kl = np.concatenate(tops).mean(), np.concatenate(kls).mean()
        report[model] = {"top1": float(top), "kl": float(kl), "texts": dict(zip(kinds, map(float, each), strict=True))}
        size = onnx_files.size(a.folder / model)
        rows.append([model, f"{size / 1e6:.0f}", f"{top:.2%}", f"{min(each):.2%} - {max(each):.2%}", f"{kl:.2g}"])
        print(rows[-1], file=sys.stderr)
    if a.json:
        print(json.dumps(report, indent=1))
        return
    count = sum(ids.size for ids in kinds.values())
    print(f"`{command()}` on {machine()}; {versions('onnxruntime')}; {count} positions of {len(kinds)} texts\n")
    print(table(["model", "MB", "same likeliest token", "worst - best text", "KL, nats"], rows))


if __name__ == "__main__":
    main()
