"""Where the time of a decoding step goes: ONNX Runtime's own profile of exported models, and of what onnxruntime-genai's builder makes.

    python benchmarks/onnx_profile.py FOLDER [FOLDER ...] [--threads 1] [--steps 64] [--prompt 256] [--top 8] [--prefill]

FOLDER is an LM2 export, or a folder with a genai_config.json. Per folder: microseconds of a step (or, with --prefill, of the prompt) by operator, named
after the matrix where one is behind it, and what is left of the wall's time: dispatch, and the program around it.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from common import command, machine, table, versions


def lm2_run(path, threads, profile):
    """A function (ids) -> None on an LM2 export with a written memory, and a function that ends profiling and returns its file."""
    import onnxruntime as ort

    from lm2.runtime.backend import BackendOptions
    from lm2.runtime.backends import onnx_backend

    real = ort.SessionOptions

    def options():
        made = real()
        made.enable_profiling, made.profile_file_prefix = True, profile
        return made

    ort.SessionOptions = options
    try:
        backend = onnx_backend.open_model(path, BackendOptions(device="cpu", threads=threads))
    finally:
        ort.SessionOptions = real
    state = backend.commit(backend.extend(np.arange(backend.config.memory.chunk) % 49152, backend.start())[1])
    chunk = [backend.start(1, state)]

    def run(ids):
        chunk[0] = backend.extend(ids, chunk[0])[1]

    return run, backend.session.end_profiling


def genai_run(path, threads, profile):
    """The same on onnxruntime-genai; its profile is written when the model goes."""
    import gc

    import onnxruntime_genai as og

    config = og.Config(str(path))
    options = {"intra_op_num_threads": threads, "enable_profiling": profile}
    config.overlay(json.dumps({"model": {"eos_token_id": 49151, "decoder": {"session_options": options}}}))
    held = {"model": og.Model(config)}
    params = og.GeneratorParams(held["model"])
    params.set_search_options(max_length=512, do_sample=False)
    held["generator"] = og.Generator(held["model"], params)

    def run(ids):
        if len(ids) > 1:
            held["generator"].append_tokens(ids)
        held["generator"].generate_next_token()

    def end():
        held.clear()
        gc.collect()
        return next(str(f) for f in Path(profile).parent.iterdir() if f.name.startswith(Path(profile).name))

    return run, end


def kernels(file, calls, last):
    """Microseconds of a call by operator, over the `last` of `calls` calls of the model."""
    with open(file, encoding="utf-8") as f:
        events = [e for e in json.load(f) if e.get("ph") == "X" or "dur" in e]
    runs = sorted((e["ts"], e["dur"]) for e in events if e["name"] == "model_run")[-calls:][-last:]
    begin, found = runs[0][0], defaultdict(float)
    for e in events:
        if e.get("cat") == "Node" and e["ts"] >= begin and e["name"].endswith("_kernel_time"):
            kind = e["args"]["op_name"]
            name = e["name"].removesuffix("_kernel_time")
            if kind in ("QLinear", "MatMulNBits", "MatMul", "Gemm", "FusedMatMul"):
                kind = f"{kind} {part(name)}"
            found[kind] += e["dur"] / last
    return found, statistics.mean(d for _, d in runs)


def part(name):
    """Which matrix of a layer a node's name is about, whoever named it."""
    known = (
        "q_proj+k_proj+v_proj",
        "qkv_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
        "input_gate+content",
        "output_gate+forget_gate",
        "lm_head",
        "head",
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
    )
    memory = "memory " if ".memory." in name else ""
    return memory + next((k for k in known if k in name), name.rsplit("/", 1)[-1].rsplit(".", 1)[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--top", type=int, default=8)
    parser.add_argument("--prefill", action="store_true")
    parser.add_argument("--genai", type=Path, default=Path("build/onnx_speed/genai"), help="where onnx_speed.py put onnxruntime-genai")
    a = parser.parse_args()
    sys.path.insert(0, os.fspath(a.genai))
    columns, names = [], []
    for folder in a.folders:
        with tempfile.TemporaryDirectory() as scratch:
            make = genai_run if (folder / "genai_config.json").is_file() else lm2_run
            run, end = make(folder, a.threads, os.path.join(scratch, "p"))
            times = []
            for ids in [list(range(1, a.prompt + 1)), *([7] for _ in range(0 if a.prefill else a.steps))]:
                began = time.perf_counter()
                run(ids)
                times.append(time.perf_counter() - began)
            last = 1 if a.prefill else a.steps - 2
            found, whole = kernels(end(), len(times), last)
            columns.append(
                found
                | {
                    "all kernels": sum(found.values()),
                    "between kernels": whole - sum(found.values()),
                    "outside": 1e6 * statistics.mean(times[-last:]) - whole,
                }
            )
            names.append(folder.name)
    sums = ("all kernels", "between kernels", "outside")
    ranked = sorted({k for c in columns for k in c} - set(sums), key=lambda k: -max(c.get(k, 0) for c in columns))
    keep, rest = ranked[: a.top], ranked[a.top :]
    rows = [[k, *(f"{c.get(k, 0):.0f}" for c in columns)] for k in keep]
    rows.append([f"{len(rest)} others", *(f"{sum(c.get(k, 0) for k in rest):.0f}" for c in columns)])
    rows += [[k, *(f"{c[k]:.0f}" for c in columns)] for k in sums]
    what = f"prompt of {a.prompt}" if a.prefill else f"step after {a.prompt}"
    print(f"`{command()}` on {machine()}; {versions('onnxruntime')}; {a.threads} thread(s)\n")
    print(table([f"µs of a {what}", *names], rows))


if __name__ == "__main__":
    main()
