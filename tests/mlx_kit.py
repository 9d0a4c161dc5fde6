"""Model folders, runs and tokens for the MLX tests. Models are made with PyTorch, the reference; runs use the backend contract only."""

import numpy as np
import tiny

from lm2.models.weights import random_model, save_folder
from lm2.runtime.backend import BackendOptions, open_backend


def folder(path, name, seed=3, **fields):
    """A random model of `tiny.CELLS[name]`, or of `tiny.config(name, **fields)`, as a folder; returns it."""
    config = tiny.CELLS[name] if not fields else tiny.config(name, **fields)
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
