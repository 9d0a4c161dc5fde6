"""Ground truth from the released LM2 implementation, on MLX: logits and the bank after each of three chunks."""

from pathlib import Path

import mlx_kit
import numpy as np
import pytest
from compare import assert_close
from safetensors.numpy import load_file

from lm2.models.checkpoints.convert import convert

pytest.importorskip("mlx.core")
GOLDEN = Path(__file__).parent.parent / "data" / "golden" / "tiny"
ATOL, RTOL = 1e-5, 1e-4


@pytest.fixture(scope="module")
def backend(tmp_path_factory):
    dst = tmp_path_factory.mktemp("golden") / "model"
    convert(GOLDEN / "ckpt_iter_7.pth", dst)
    return mlx_kit.mlx(dst)


@pytest.mark.parametrize("splits", [(), (13, 14)])
def test_three_chunks(backend, splits):
    golden = load_file(GOLDEN / "golden.safetensors")
    state = backend.from_host(golden["memory.0"][None], 0)
    for c in range(3):
        logits, chunk = mlx_kit.run(backend, golden[f"input_ids.{c}"], state, splits)
        if not splits:  # pooled over the whole chunk: only the last logits of a piece are the chunk's
            assert_close(f"chunk {c} logits", logits, golden[f"logits.{c}"], ATOL, RTOL)
        assert_close(f"chunk {c} last logits", logits[:, -1], golden[f"logits.{c}"][:, -1], ATOL, RTOL)
        state = backend.commit(chunk)
        assert_close(f"chunk {c} bank", backend.to_host(state)[0], golden[f"memory.{c + 1}"], ATOL, RTOL)


@pytest.mark.parametrize("fault", ["gates swapped", "rows shifted", "stale bank"])
def test_a_wrong_mirror_fails(backend, fault, monkeypatch):
    """Negative controls: plausible mistakes must not pass the gates above."""
    from lm2.lm2_mlx import memory

    golden = load_file(GOLDEN / "golden.safetensors")
    bank = golden["memory.1"][None]
    if fault == "gates swapped":
        right = memory.gated_memory_update
        monkeypatch.setattr(memory, "gated_memory_update", lambda i, f, z, old: right(f, i, z, old))
    elif fault == "rows shifted":
        bank = np.roll(bank, 1, axis=2)
    else:
        bank = golden["memory.0"][None]
    logits, chunk = mlx_kit.run(backend, golden["input_ids.1"], backend.from_host(bank, 1))
    with pytest.raises(AssertionError):
        assert_close("logits", logits, golden["logits.1"], ATOL, RTOL)
    with pytest.raises(AssertionError):
        assert_close("bank", backend.to_host(backend.commit(chunk))[0], golden["memory.2"], ATOL, RTOL)
