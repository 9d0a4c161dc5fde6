"""Model folders, runs and tokens for the MLX tests. Models are made with PyTorch, the reference; runs use the backend contract only."""

import platform

import numpy as np
import tiny

from lm2.models.weights import random_model, save_folder
from lm2.runtime.backend import BackendOptions, open_backend


def fast():
    """Whether MLX computes with more than its Linux wheel's plain BLAS, which is twenty times slower."""
    from lm2.lm2_mlx.blas import preloaded

    return platform.system() != "Linux" or preloaded()


def folder(path, name, seed=3, **fields):
    """A random model of `tiny.CELLS[name]`, or of `tiny.config(name, **fields)`, as a folder; returns it."""
    config = (tiny.CELLS | tiny.ALONE)[name] if not fields else tiny.config(name, **fields)
    save_folder(random_model(config, seed=seed), path)
    return path


def mlx(path, dtype="auto"):
    return open_backend("mlx", path, BackendOptions(device="cpu", dtype=dtype))


def torch(path, dtype="float32"):
    return open_backend("torch", path, BackendOptions(device="cpu", dtype=dtype))


def tokens(backend, batch, length, seed=5):
    return np.random.default_rng(seed).integers(0, backend.config.vocab_size, (batch, length))  # (b, t)


def run(backend, ids, state=None, splits=()):
    """One chunk fed in pieces cut at `splits`: logits of all positions (b, t, v) and the chunk."""
    chunk, out = backend.start(ids.shape[0], state), []
    for piece in np.split(ids, splits, axis=1):
        logits, chunk = backend.extend(piece, chunk, all_logits=True)
        out.append(logits)
    return np.concatenate(out, axis=1), chunk


def written(backend, batch=1, chunks=3, seed=9):
    """The state after some chunks of random tokens."""
    state = None
    for c in range(chunks):
        state = backend.commit(run(backend, tokens(backend, batch, backend.config.memory.chunk, seed + c), state)[1])
    return state


def tensors(path):
    """Every tensor of a folder, packed ones by MLX's own dequantisation, in float32."""
    import mlx.core as mx

    from lm2.models.layout import open_folder
    from lm2.models.tensorfile import read_tensor, to_float32

    folder = open_folder(path, quantized=True)
    out = {}
    with open(folder.weights, "rb") as f:
        raw = {n: read_tensor(f, t) for n, t in folder.header.tensors.items()}
    for name, info in folder.header.tensors.items():
        base = name.rsplit(".", 1)[0]
        if info.dtype == "U32":
            bits, group = folder.quantization.of(base)
            scales = raw[f"{base}.scales"].astype(np.float32)
            biases = -(2.0 ** (bits - 1)) * scales if base in folder.quantization.symmetric else raw[f"{base}.biases"].astype(np.float32)
            scales, biases = mx.array(scales), mx.array(biases.astype(np.float32))
            out[name] = np.array(mx.dequantize(mx.array(raw[name]), scales, biases, group_size=group, bits=bits))
        elif not name.endswith((".scales", ".biases")):
            out[name] = to_float32(raw[name], info.dtype)
    return out


def unpacked(packed, plain, path):
    """The folder `plain` with the numbers that `packed` holds, in float32, for a backend without quantised products; returns it."""
    from safetensors.numpy import save_file

    path.mkdir()
    for file in plain.iterdir():
        if file.suffix != ".safetensors":
            (path / file.name).write_bytes(file.read_bytes())
    save_file(tensors(packed), path / "model.safetensors")
    return path
