"""Sections of benchmarks/gpu.py about what stands beside the torch backend: the operator library, ONNX Runtime on CUDA, MLX's CUDA build."""

import json
import time
from importlib.metadata import distributions

import numpy as np
import torch
from gpu_bench import Bench, Section, Skipped, ms
from gpu_floors import smollm2, toy


def environment(bench: Bench) -> Section:
    """What the figures belong to."""
    from common import machine, versions

    from lm2.models.kernels import choice

    out = Section(["what", "value"])
    out.rows += [
        ["date", time.strftime("%Y-%m-%d")],
        ["machine", machine()],
        ["versions", versions("torch", "triton", "onnxruntime-gpu", "mlx")],
    ]
    out.rows += [["kernels", choice.describe(bench.device)], ["seed of all inputs", str(bench.seed)]]
    if bench.cuda:
        p = torch.cuda.get_device_properties(bench.device)
        out.rows.append(
            [
                "device",
                f"{p.name}, {p.total_memory / 2**30:.0f} GiB, {p.multi_processor_count} multiprocessors, compute {p.major}.{p.minor}, CUDA {torch.version.cuda}",
            ]
        )
    else:
        out.rows.append(["device", "none: a CPU" + (" at toy sizes, so no time in this report means anything" if bench.toy else "")])
    return out


def library(bench: Bench) -> Section:
    """The ONNX operator library with its CUDA kernels; on a CPU, without."""
    from lm2.export.ops.build import BuildError
    from lm2.export.ops.build import library as build

    t = time.perf_counter()
    try:
        path = build(cuda=bench.cuda)
    except BuildError as error:
        raise Skipped(str(error)) from None
    out = Section(["library", "KB", "seconds"])
    out.rows.append([path.name, f"{path.stat().st_size / 1024:.0f}", f"{time.perf_counter() - t:.1f}"])
    return out


def _installed(*names):
    return any(d.metadata["Name"].lower() in names for d in distributions() if d.metadata["Name"])


def _folder(bench: Bench):
    """A folder of SmolLM2's shape with random weights, written once."""
    from lm2.models.weights import random_model, save_folder

    path = bench.folder / ("toy-model" if bench.toy else "model")
    if not path.exists():
        save_folder(random_model(toy(smollm2()) if bench.toy else smollm2(), 1), path)
    return path


def _run(bench: Bench, name: str, dtype: str):
    """Seconds a token of a backend, the logits of what it was fed, and the backend. What the reference makes of the same is the first figure's gate."""
    from lm2.runtime.backend import BackendOptions, open_backend

    device = "cuda" if bench.cuda and name != "mlx" else "gpu" if bench.cuda else "cpu"
    backend = open_backend(name, _folder(bench), BackendOptions(device=device, dtype=dtype))
    config = backend.config
    rng, half = np.random.default_rng(bench.seed), config.memory.chunk // 2
    _, chunk = backend.extend(rng.integers(0, config.vocab_size, config.memory.chunk), backend.start())
    chunk = backend.start(1, backend.commit(chunk))
    logits, chunk = backend.extend(rng.integers(0, config.vocab_size, half), chunk)
    kept, tokens = [logits[0]], rng.integers(0, config.vocab_size, 3 if bench.toy else 100)
    for token in tokens[:2]:
        logits, chunk = backend.extend([token], chunk)
        kept.append(logits[0])
    t = time.perf_counter()
    for token in tokens[2:]:
        logits, chunk = backend.extend([token], chunk)
    return (time.perf_counter() - t) / len(tokens[2:]), np.stack(kept), backend


def _beside(bench: Bench, name: str) -> Section:
    out = Section(
        [
            "SmolLM2's shape, batch 1, memory written",
            "dtype",
            "ms/token through the backend",
            "relative L2 of logits against torch on the same device",
        ]
    )
    for dtype in ("float32",) if bench.toy else ("float32", "float16"):
        seconds, want, _ = _run(bench, "torch", dtype)
        out.rows.append(["torch", dtype, ms(seconds), ""])
        bench.free()
        seconds, got, _ = _run(bench, name, dtype)
        difference = float(np.linalg.norm(got - want) / np.linalg.norm(want))
        out.rows.append([name, dtype, ms(seconds), f"{difference:.2g}"])
        gate = 1e-5 if dtype == "float32" else 1e-2
        out.judged.append((f"{name} against torch, {dtype}", f"relative L2 {difference:.2g}", f"<= {gate:g}", difference <= gate))
    return out


def onnxruntime(bench: Bench) -> Section:
    """The exported model in ONNX Runtime: on CUDA with the operator library if it was built, and where the custom node ran."""
    if not _installed("onnxruntime-gpu") and not (bench.toy and _installed("onnxruntime")):
        raise Skipped("onnxruntime-gpu is not installed: pip install 'lm2[onnx-gpu]'")
    import onnxruntime as ort

    if bench.cuda and "CUDAExecutionProvider" not in ort.get_available_providers():
        raise Skipped(f"this ONNX Runtime has {', '.join(ort.get_available_providers())}, no CUDAExecutionProvider")
    out = _beside(bench, "onnx")
    from lm2.export.ops.build import built

    there = built(cuda=bench.cuda)
    where = _where_the_node_runs(bench)
    out.notes.append(f"operator library: {there.name if there else 'not built, the function body runs'}; {where}")
    if bench.cuda and there:
        out.judged.append(
            ("GatedMemoryUpdate with the library", where, "on CUDAExecutionProvider", "GatedMemoryUpdate on CUDAExecutionProvider" in where)
        )
    return out


def _where_the_node_runs(bench: Bench) -> str:
    """From ONNX Runtime's own profile of a step."""
    import onnxruntime as ort
    from onnxruntime import InferenceSession

    from lm2.export.ops.build import built
    from lm2.models.layout import open_folder
    from lm2.runtime.backend import BackendOptions
    from lm2.runtime.backends.onnx_cache import exported_folder
    from lm2.runtime.backends.onnx_session import pick_provider

    device = "cuda" if bench.cuda else "cpu"
    folder = exported_folder(open_folder(_folder(bench)), BackendOptions(device=device, dtype="float32"))
    options = ort.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(bench.folder / "profile")
    there = built(cuda=bench.cuda)
    if there:
        options.register_custom_ops_library(str(there))
    session = InferenceSession(str(folder.path / "model.onnx"), options, providers=[pick_provider(device)[0]])
    shapes = {i.name: [1 if isinstance(d, str) else d for d in i.shape] for i in session.get_inputs()}
    kinds = {
        "tensor(float)": np.float32,
        "tensor(float16)": np.float16,
        "tensor(int64)": np.int64,
        "tensor(int32)": np.int32,
        "tensor(bool)": np.bool_,
    }
    session.run(None, {i.name: np.zeros(shapes[i.name], kinds[i.type]) for i in session.get_inputs()})
    with open(session.end_profiling(), encoding="utf-8") as f:
        ran = {(e["args"].get("op_name"), e["args"].get("provider")) for e in json.load(f) if "provider" in e.get("args", {})}
    found = sorted(f"{op} on {provider}" for op, provider in ran if op in ("GatedMemoryUpdate", "Sigmoid", "Tanh"))
    return "profile: " + (", ".join(found) or "no gated update in it")


def mlx(bench: Bench) -> Section:
    """The MLX mirror on its CUDA build."""
    if not _installed("mlx-cuda-13", "mlx-cuda-12", "mlx-cuda") and not (bench.toy and _installed("mlx")):
        raise Skipped("MLX's CUDA build is not installed: pip install 'lm2[mlx-cuda]'")
    return _beside(bench, "mlx")
