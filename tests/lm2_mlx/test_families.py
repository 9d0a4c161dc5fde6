"""Families of decoders in MLX: what transformers computes, memory never written, and the PyTorch reference's numbers with one that is."""

import family_kit as kit
import mlx_kit
import numpy as np
import pytest
import sources
import tiny
from compare import nmse, relative_l2

from lm2.models.checkpoints.convert import convert
from lm2.models.config import BackboneConfig

pytest.importorskip("mlx.core")
CASES = [(family, next(iter(shapes))) for family, (_, shapes) in kit.FAMILIES.items()] + [("phi3", "part"), ("phi3", "long"), ("mistral", "window"), ("qwen2", "window")]


@pytest.mark.parametrize(("family", "name"), CASES)
def test_a_memory_never_written_computes_what_transformers_does(tmp_path, family, name):
    model, src = kit.made(tmp_path / "src", family, name)
    convert(src, tmp_path / "dst")
    assert kit.error(kit.backend_logits(tmp_path / "dst", kit.IDS, "mlx"), sources.logits(model, kit.IDS)) < kit.GATE


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), [case for case in kit.SHAPES if case not in CASES])
def test_every_checkpoint(tmp_path, family, name):
    test_a_memory_never_written_computes_what_transformers_does(tmp_path, family, name)


def test_calls_of_any_size_see_the_same_windows(tmp_path):
    """Token by token, in pieces, and at more tokens than a CPU attends to at once."""
    ids = np.random.default_rng(5).integers(0, 96, (2, 100))
    model, src = kit.made(tmp_path / "src", "gemma3_text", "grouped", max_position_embeddings=128, sliding_window=21)
    convert(src, tmp_path / "dst")
    want = sources.logits(model, ids)
    for cuts in ((), (1, 20, 21, 22, 60), range(1, 100)):
        assert kit.error(kit.in_pieces(tmp_path / "dst", ids, cuts, "mlx"), want) < kit.GATE


def window(backend, ids):
    """Two chunks, the second in steps of one token: its logits, and the bank after it."""
    logits, chunk = mlx_kit.run(backend, ids)
    state = backend.commit(chunk)
    logits, chunk = mlx_kit.run(backend, ids, state, range(1, 6))
    return logits, backend.to_host(backend.commit(chunk))


@pytest.mark.parametrize("name", tiny.BACKBONES)
def test_a_written_memory_is_the_references(tmp_path, name):
    path = mlx_kit.folder(tmp_path / "m", "gated", rows=2, backbone=tiny.BACKBONES[name])
    ids = np.random.default_rng(4).integers(0, 61, (2, 16))
    (want, bank), (got, got_bank) = window(mlx_kit.torch(path), ids), window(mlx_kit.mlx(path), ids)
    assert relative_l2(got, want) <= 1e-5 and nmse(got_bank, bank) <= 1e-10


FAULTS = {
    "layers that turn": ("norms of heads", lambda block: setattr(block.attention, "turns", 0)),
    "rope of some layers": ("norms around", lambda block: setattr(block.attention, "turns", 0)),
    "norm of q": ("norms of heads", lambda block: setattr(block.attention, "q_norm", None)),
    "norm after attention": ("norms around", lambda block: setattr(block.attention, "output_norm", None)),
    "norm after the MLP": ("norms after", lambda block: setattr(block.mlp, "output_norm", None)),
    "activation": ("norms around", lambda block: setattr(block.mlp, "silu", True)),
    "window": ("windows", lambda block: setattr(block.attention, "window", None)),
    "window of one more": ("windows", lambda block: setattr(block.attention, "window", block.attention.window and block.attention.window + 1)),
    "window of one less": ("windows", lambda block: setattr(block.attention, "window", block.attention.window and block.attention.window - 1)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_part_left_out_is_noticed(tmp_path, fault):
    name, spoil = FAULTS[fault]
    path = mlx_kit.folder(tmp_path / "m", "gated", rows=2, backbone=tiny.BACKBONES[name])
    ids = np.random.default_rng(4).integers(0, 61, (2, 16))
    backend = mlx_kit.mlx(path)
    for block in backend.model.blocks:
        spoil(block)
    backend.model.pieces = backend.model.step_pieces = [p._replace(project=b.project, finish=b.finish) for p, b in zip(backend.model.pieces, backend.model.blocks, strict=True)]
    assert relative_l2(mlx_kit.run(backend, ids)[0], mlx_kit.run(mlx_kit.torch(path), ids)[0]) > kit.FAULT
    assert BackboneConfig() not in tiny.BACKBONES.values()
