"""Tokens per second of LM2 on MLX beside mlx-lm on the same weights, in one process, interleaved. Prints a Markdown table.

    python benchmarks/mlx_speed.py MODEL [PACKED ...]

MODEL is a plain model folder, PACKED are folders made from it by `lm2 convert --mlx`. Each folder is run by lm2 with its memory on (a bank
written by one full chunk) and by mlx-lm without any memory, on the very same arrays in the same dtype. Decoding alternates token by token, so
that both sides meet the same machine; prefill alternates call by call, and for lm2 includes reading the bank into the chunk (start). "a chunk"
is what reading a long text costs lm2 per chunk: start, prefill of all its positions, commit; mlx-lm has only the prefill. On Linux preload OpenBLAS (docs/mlx.md); nothing here limits threads.
"""

import argparse
import json
import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.models.llama import Model, ModelArgs

from lm2.models.layout import open_folder
from lm2.runtime.backend import BackendOptions, open_backend


def mlx_lm_model(path, dtype):
    """mlx-lm's Llama on the backbone's arrays of a folder, quantised where the folder is."""
    folder = open_folder(path, quantized=True)
    q = folder.quantization
    model = Model(ModelArgs.from_dict({**json.loads((path / "config.json").read_text()), "model_type": "llama"}))
    weights = {n: w for n, w in mx.load(str(folder.weights)).items() if ".memory." not in n}
    if q is not None:

        def packing(name, module):
            bits, group = q.of(name)
            return {"bits": bits, "group_size": group} if f"{name}.scales" in weights else False

        for name in q.symmetric:
            if f"{name}.scales" in weights:
                weights[f"{name}.biases"] = weights[f"{name}.scales"] * -(2 ** (q.of(name)[0] - 1))

        nn.quantize(model, q.group_size, q.bits, class_predicate=packing)
    model.load_weights([(n, w if w.dtype == mx.uint32 else w.astype(dtype)) for n, w in weights.items()])
    mx.eval(model.parameters())
    return model.eval()


class Lm2:
    """lm2 through the backend contract, memory written."""

    def __init__(self, backend, ids):
        self.backend = backend
        _, chunk = backend.extend(ids, backend.start())
        self.state = backend.commit(chunk)

    def whole(self, ids):
        self.prefill(ids)
        self.state = self.backend.commit(self.chunk)

    def prefill(self, ids):
        self.chunk = self.backend.start(1, self.state)
        logits, self.chunk = self.backend.extend(ids, self.chunk)
        return logits[0]

    def step(self, token):
        logits, self.chunk = self.backend.extend([token], self.chunk)
        return logits[0]


class MlxLm:
    """mlx-lm's model and cache, with the last logits brought to the host as a sampler needs them."""

    def __init__(self, model):
        self.model = model

    def _call(self, ids):
        logits = self.model(mx.array(ids)[None], cache=self.cache)[0, -1]
        mx.eval(logits)
        return np.array(logits.astype(mx.float32))

    def prefill(self, ids):
        self.cache = make_prompt_cache(self.model)
        return self._call(ids)

    whole = prefill

    def step(self, token):
        return self._call([token])


def timed(f, *args):
    began = time.perf_counter()
    f(*args)
    return time.perf_counter() - began


def measure(path, options, prompt, steps, runs, chunks):
    """Median seconds of a prefill, of one step, and of a whole chunk, by side."""
    backend = open_backend("mlx", path, options)
    ids = np.random.default_rng(0).integers(0, backend.config.vocab_size, backend.config.memory.chunk)
    with mx.stream(backend.device):
        sides = {"lm2": Lm2(backend, ids), "mlx-lm": MlxLm(mlx_lm_model(path, backend.model.dtype))}
        for side in sides.values():
            side.prefill(ids[:prompt])
            side.step(int(ids[0]))
        prefill = {name: [] for name in sides}
        whole = {name: [] for name in sides}
        decode = {name: [] for name in sides}
        for run in range(runs):
            order = list(sides)[:: 1 if run % 2 == 0 else -1]
            for name in order if chunks else ():
                whole[name].append(timed(sides[name].whole, ids))
            for name in order:
                prefill[name].append(timed(sides[name].prefill, ids[:prompt]))
            taken = {name: [] for name in sides}
            for i in range(steps):
                for name in order:
                    taken[name].append(timed(sides[name].step, int(ids[prompt + i])))
            for name in sides:
                decode[name].append(statistics.median(taken[name]))
    return backend, *({k: statistics.median(v) for k, v in times.items() if v} for times in (prefill, decode, whole))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--prompt", type=int, default=256, help="tokens of a prefill")
    parser.add_argument("--steps", type=int, default=32, help="tokens decoded per run")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument(
        "--chunks", action="store_true", help="also time whole chunks with their commit (mlx-lm needs minutes for packed weights on a CPU)"
    )
    a = parser.parse_args()
    print("| model | weights | what | lm2 tok/s | mlx-lm tok/s | lm2 / mlx-lm |")
    print("|---|---|---|---|---|---|")
    for path in a.models:
        backend, prefill, decode, whole = measure(path, BackendOptions(a.device, a.dtype), a.prompt, a.steps, a.runs, a.chunks)
        d = backend.describe()
        weights = d.dtype if d.quantization == "none" else f"{d.quantization}, computed in {d.dtype}"
        chunk = backend.config.memory.chunk
        for what, seconds, tokens in (
            (f"prefill {a.prompt}", prefill, a.prompt),
            (f"decode at {a.prompt}", decode, 1),
            (f"a chunk of {chunk}, committed", whole, chunk),
        ):
            if not seconds:
                continue
            ours, theirs = tokens / seconds["lm2"], tokens / seconds["mlx-lm"]
            print(f"| {backend.config.name} | {weights} | {what} | {ours:.1f} | {theirs:.1f} | {ours / theirs:.2f}x |")
    blas = "OpenBLAS preloaded" if "openblas" in os.environ.get("LD_PRELOAD", "") else "no BLAS preloaded"
    where = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, device {d.device}"
    print(
        f"\nmlx {version('mlx')}, mlx-lm {version('mlx-lm')}, Python {platform.python_version()}; {where}; {blas}; median of {a.runs} interleaved runs."
    )


if __name__ == "__main__":
    main()
