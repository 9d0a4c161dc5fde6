"""Ground truth from the released LM2 implementation: logits, the bank after each chunk, and the bank after each layer."""

import json
from pathlib import Path

import pytest
import torch
from compare import assert_close
from safetensors.torch import load_file

from lm2.models.config import LM2Config, MemoryConfig
from lm2.models.weights import load_tensors, new_model

GOLDEN = Path(__file__).parent.parent / "data" / "golden" / "tiny"
ATOL, RTOL = 1e-5, 1e-4
RENAMED = (
    ("mem_attn.memory_module.", "memory."), ("attention_mlp.0", "mlp"), ("attended_memory_layernorm2.", "norm2."), ("attended_memory_layernorm.", "norm1."),
    ("input_gate_projector.w", "token_gate.scale"), ("input_gate_projector.linear", "token_gate"), ("memory_gate_projector.linear", "bank_gate"),
)  # fmt: skip


def golden_model(gate_pool="chunk"):
    fields = json.loads((GOLDEN / "config.json").read_text())
    n, heads = fields["memory_slots"], fields["num_mem_heads"]
    memory = MemoryConfig("released", n, n, tuple(range(fields["num_hidden_layers"])), heads, n // heads, init="eye", gate_pool=gate_pool)
    state = torch.load(GOLDEN / "ckpt_iter_7.pth", weights_only=True)["model_state_dict"]
    tensors = {}
    for name, value in state.items():
        if name == "memory_bank" or ".mem_attn.self_attn." in name or ".attention_mlp.1." in name:
            continue
        for old, new in RENAMED:
            name = name.replace(old, new)
        tensors[name] = value
    model = new_model(LM2Config.from_llama(fields, memory))
    load_tensors(model, tensors)
    return model


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "golden.safetensors")


def test_whole_chunks(golden):
    model, bank = golden_model(), golden["memory.0"][None]
    assert torch.equal(bank, model.initial_bank())
    for c in range(3):
        trace = []
        logits, bank = model(golden[f"input_ids.{c}"], bank, c * 32, trace=trace)
        assert_close(f"chunk {c} logits", logits, golden[f"logits.{c}"], ATOL, RTOL)
        assert_close(f"chunk {c} bank", bank[0], golden[f"memory.{c + 1}"], ATOL, RTOL)
        for layer, after in enumerate(trace):
            assert_close(f"chunk {c} layer {layer} bank", after, golden[f"layer_memory.{c}.{layer}"], ATOL, RTOL)


def test_through_chunk_states(golden):
    """The exact mode of a session: tokens arrive in pieces, the chunk is re-run, the last logits and the bank are the checkpoint's."""
    model, bank = golden_model(), golden["memory.0"][None]
    for c in range(3):
        ids = golden[f"input_ids.{c}"]
        chunk = model.start(bank, c * 32)
        for piece in ids.split((13, 1, 18), dim=1):
            logits, chunk = model.extend(piece, chunk, model.tables())
        assert_close(f"chunk {c} last logits", logits[:, -1], golden[f"logits.{c}"][:, -1], ATOL, RTOL)
        bank, chunks = model.commit(chunk)
        assert chunks == (c + 1) * 32
        assert_close(f"chunk {c} bank", bank[0], golden[f"memory.{c + 1}"], ATOL, RTOL)


@pytest.mark.parametrize("fault", ["gates swapped", "output order", "rows shifted", "theta", "causal pooling", "stale bank"])
def test_negative_controls(golden, fault, monkeypatch):
    """Each of these is a plausible mistake in a mirror; none may pass the gates above."""
    from lm2.models import update
    from lm2.models.kernels import released

    model = golden_model("causal" if fault == "causal pooling" else "chunk")
    bank = golden["memory.0"][None]
    ids = golden["input_ids.0"]
    if fault == "gates swapped":
        monkeypatch.setattr(released, "plain_update", lambda i, f, z, old: update.gated_memory_update(f, i, z, old))
    elif fault == "output order":
        monkeypatch.setattr(released, "plain_update", lambda i, f, z, old: torch.sigmoid(i) * z + torch.sigmoid(f) * old)
    elif fault == "rows shifted":
        bank = bank.roll(1, dims=2)
    elif fault == "theta":
        monkeypatch.setattr(type(model), "tables", lambda self, real=type(model).tables: tuple(t.roll(1, 0) for t in real(self)))
    elif fault == "stale bank":
        bank, ids = golden["memory.0"][None], golden["input_ids.1"]
    logits, after = model(ids, bank)
    chunk = 1 if fault == "stale bank" else 0
    with pytest.raises(AssertionError):
        assert_close("logits", logits, golden[f"logits.{chunk}"], ATOL, RTOL)
        assert_close("bank", after[0], golden[f"memory.{chunk + 1}"], ATOL, RTOL)
