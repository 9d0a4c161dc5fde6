"""MLX beside the PyTorch reference on the same folders and tokens: each figure is printed beside its gate."""

import dataclasses
import subprocess
import sys

import mlx_kit
import numpy as np
import pytest
import tiny
from compare import nmse, relative_l2

from lm2.models.config import RopeConfig
from lm2.models.weights import random_model, save_folder

pytest.importorskip("mlx.core")
# logits relative L2, bank NMSE after 5 chunks: random weights amplify any rounding from chunk to chunk, in the reference as well.
GATES = {"float16": (5e-3, 1e-5), "bfloat16": (5e-2, 3e-4)}


def chunks(backend, count, batch=1, seed=0):
    """Logits of the last of `count` chunks, and the bank after it; a chunk is fed as 5 and the rest."""
    state = None
    for c in range(count):
        ids = mlx_kit.tokens(backend, batch, backend.config.memory.chunk, seed + c)
        logits, chunk = mlx_kit.run(backend, ids, state, [5])
        state = backend.commit(chunk)
    return logits, backend.to_host(state)


@pytest.mark.slow
@pytest.mark.parametrize("name", tiny.CELLS)
def test_a_hundred_chunks(tmp_path, name):
    path = mlx_kit.folder(tmp_path / "m", name)
    (want, bank), (got, got_bank) = chunks(mlx_kit.torch(path), 100), chunks(mlx_kit.mlx(path), 100)
    print(f"{name}: logits relative L2 {relative_l2(got, want):.2g} gate 1e-5; bank NMSE {nmse(got_bank, bank):.2g} gate 1e-10")
    assert relative_l2(got, want) <= 1e-5
    assert (got.argmax(-1) == want.argmax(-1)).all()
    assert nmse(got_bank, bank) <= 1e-10


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["gated", "gated-eye", "gated-topics", "released-causal"])
def test_half_precision(tmp_path, name, dtype):
    """Against the reference in float32."""
    path = mlx_kit.folder(tmp_path / "m", name)
    (want, bank), (got, got_bank) = chunks(mlx_kit.torch(path), 5), chunks(mlx_kit.mlx(path, dtype), 5)
    logits, memory = relative_l2(got, want), nmse(got_bank, bank)
    print(f"{name} {dtype}: logits relative L2 {logits:.2g} gate {GATES[dtype][0]:g}; bank NMSE {memory:.2g} gate {GATES[dtype][1]:g}")
    assert logits <= GATES[dtype][0] and memory <= GATES[dtype][1]
    assert got_bank.dtype == np.float32


@pytest.mark.parametrize("rope", [RopeConfig(10000.0, "llama3", 8.0, 1.0, 4.0, 16), RopeConfig(10000.0, "linear", 4.0), RopeConfig(1e6)])
def test_rope(tmp_path, rope):
    """Scaled frequencies at every position of a chunk of 128; and a wrong theta does not pass (negative control)."""
    config = dataclasses.replace(tiny.config(chunk=128, layers=2, memory_layers=(1,)), rope=rope)
    save_folder(random_model(config, 1), tmp_path / "a")
    save_folder(random_model(dataclasses.replace(config, rope=RopeConfig(500.0)), 1), tmp_path / "b")
    reference = mlx_kit.torch(tmp_path / "a")
    want, _ = chunks(reference, 1)
    assert relative_l2(chunks(mlx_kit.mlx(tmp_path / "a"), 1)[0], want) <= 2e-6
    assert relative_l2(chunks(mlx_kit.mlx(tmp_path / "b"), 1)[0], want) > 1e-2


def test_shapes_of_llamas(tmp_path):
    """Biases, an untied head, multi-head and multi-query attention, wide heads."""
    for i, fields in enumerate(
        (dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=False), dict(num_key_value_heads=4), dict(num_key_value_heads=1))
    ):
        path = mlx_kit.folder(tmp_path / str(i), "gated", **fields)
        assert relative_l2(chunks(mlx_kit.mlx(path), 3)[0], chunks(mlx_kit.torch(path), 3)[0]) <= 2e-6


@pytest.mark.parametrize("there, back", [("torch", "mlx"), ("mlx", "torch")])
def test_a_state_moves_between_backends(tmp_path, there, back):
    """Two chunks and a half on one, the rest on the other: the greedy tokens are those of staying."""
    path = mlx_kit.folder(tmp_path / "m", "gated")
    a, b = getattr(mlx_kit, there)(path), getattr(mlx_kit, back)(path)

    def greedy(backend, chunk, token, count):
        out = []
        for _ in range(count):
            logits, chunk = backend.extend([token], chunk)
            token = int(logits[0].argmax())
            out.append(token)
        return out

    state = mlx_kit.written(a, chunks=2)
    ids = mlx_kit.tokens(a, 1, 7)
    stay = greedy(a, a.extend(ids, a.start(1, state))[1], 3, 9)
    moved = b.from_host(a.to_host(state), state.written)
    assert greedy(b, b.extend(ids, b.start(1, moved))[1], 3, 9) == stay
    zero = b.from_host(np.zeros_like(a.to_host(state)), state.written)
    assert np.abs(b.extend(ids, b.start(1, zero))[0] - b.extend(ids, b.start(1, moved))[0]).max() > 1e-3


@pytest.mark.parametrize("name", ["gated", "gated-topics"])
def test_compiled_steps_are_the_plain_ones(tmp_path, name):
    b = mlx_kit.mlx(mlx_kit.folder(tmp_path / "m", name))
    ids, state = mlx_kit.tokens(b, 2, 6), mlx_kit.written(b, 2)
    assert b.model.step_pieces == b.model.pieces, "not on a CPU unless asked for"
    b.model.step_pieces = [p.compiled() for p in b.model.pieces]
    compiled, _ = mlx_kit.run(b, ids, state, range(1, 6))
    b.model.step_pieces = b.model.pieces
    plain, _ = mlx_kit.run(b, ids, state, range(1, 6))
    assert relative_l2(compiled, plain) <= 1e-6


def test_neither_torch_nor_onnx_is_imported(tmp_path):
    """Load and generate in a fresh process: no torch, no transformers, no onnx, no mlx-lm."""
    path = mlx_kit.folder(tmp_path / "m", "gated")
    program = f"""
import sys
from pathlib import Path
from lm2.runtime.backend import open_backend
b = open_backend("mlx", Path({str(path)!r}))
chunk = b.start(1)
for _ in range(3):
    logits, chunk = b.extend([1, 2], chunk)
b.commit(chunk)
bad = [m for m in ("torch", "transformers", "onnx", "onnxruntime", "mlx_lm", "gguf") if m in sys.modules]
sys.exit(f"imported: {{bad}}" if bad else 0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
