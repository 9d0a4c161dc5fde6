"""Whole tiny models through Triton's interpreter: every cell in every dtype against the plain modules, over chunks; prefill, step and training."""

import pytest
import tiny
import torch
from compare import nmse, relative_l2

from lm2.models import decode
from lm2.models.kernels import attention_triton, gated_triton, norm_triton, released_triton, rotary_triton, stream_triton, update_triton
from lm2.models.llama import wide
from lm2.models.weights import random_model, slots_of

GATES = {torch.float32: (1e-5, 1e-10), torch.float16: (5e-3, 1e-5), torch.bfloat16: (5e-2, 3e-4)}  # logits relative L2, bank NMSE
HALVES = ("gated-eye", "released-causal")
MODULES = (attention_triton, gated_triton, norm_triton, released_triton, rotary_triton, stream_triton, update_triton)


def pair(name, dtype):
    """A model in a dtype, and the same rounded numbers in float64."""
    model, exact = random_model(tiny.CELLS[name], 3, dtype), random_model(tiny.CELLS[name], 3, torch.float64)
    with torch.no_grad():
        for (_, a), (_, b) in zip(slots_of(model), slots_of(exact), strict=True):
            b.copy_(a)
    return model, exact


def ids_of(model, batch, length, seed):
    return torch.randint(0, model.config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def launched(monkeypatch):
    """Names of the kernels' launchers that were called."""
    seen = set()
    for module in MODULES:
        for name in ("forward", "backward", "rms_norm", "finish", "attention", "rotate_store", "opening", "closing", "pool", "store"):
            if name in vars(module) and vars(module)[name].__module__ == module.__name__:
                real = getattr(module, name)
                monkeypatch.setattr(module, name, lambda *a, real=real, name=name: (seen.add(name), real(*a))[1])
    return seen


@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "dtype"),
    [(n, torch.float32) for n in tiny.CELLS if n != "gated"] + [(n, d) for n in HALVES for d in GATES if d != torch.float32],
    ids=str,
)
def test_chunks_and_steps(name, dtype, launched):
    """Two chunks: the first by one prefill, the second by steps, in cells that have them."""
    model, exact = pair(name, dtype)
    bank, want_bank = model.initial_bank(2), exact.initial_bank(2)
    ids = ids_of(model, 2, 5, 1)
    logits, chunk = model.extend(ids, model.start(bank), model.tables(), all_logits=True)
    want, want_bank = exact(ids, want_bank)
    (bank, written), (logit_gate, bank_gate) = model.commit(chunk), GATES[dtype]
    print(name, dtype, relative_l2(logits, want), nmse(bank, want_bank))
    assert relative_l2(logits, want) <= logit_gate and nmse(bank, want_bank) <= bank_gate
    expected = {"rms_norm", "opening", "closing"} if name.startswith("released") else {"rms_norm", "finish" if "eye" in name else "forward"}
    if not decode.steps(model):
        assert launched == expected
        return
    buffers = decode.new_buffers(model, 2)
    decode.begin(model, buffers, bank, written)
    ids, got = ids_of(model, 2, 2, 2), []
    for t in range(2):
        buffers.inputs.copy_(torch.cat((ids[:, t], torch.full((4,), t))))
        decode.step(model, buffers, model.tables())
        got.append(buffers.logits.clone())
    want, want_bank = exact(ids, bank.double(), written)
    assert buffers.logits.dtype == wide(dtype)
    print("steps", relative_l2(torch.stack(got, 1), want))
    assert relative_l2(torch.stack(got, 1), want) <= logit_gate
    first = int(model.places(written, 1))
    assert nmse(buffers.rows[:, :, :2], want_bank[:, :, first : first + 2]) <= bank_gate
    assert launched == expected | {"rms_norm", "rotate_store", "attention"} | (
        {"pool", "store"} if name.startswith("released") else {"finish"}
    )


@pytest.mark.parametrize("name", ["gated", "gated-eye", "released-causal"])
def test_training(name, launched):
    """Gradients of every weight through two chunks, the second reading what the first wrote."""
    model, exact = pair(name, torch.float32)
    grads = []
    for m in (model, exact):
        m.requires_grad_()
        bank = m.initial_bank(1)
        for c in range(2):
            logits, bank = m(ids_of(m, 1, 4, c), bank, c * 4)
        (logits.double().log_softmax(-1)[..., 0].mean() + bank.double().square().mean()).backward()
        grads.append({k: p.grad for k, p in m.named_parameters() if p.grad is not None})
    assert set(grads[0]) == set(grads[1]) and len(grads[0]) > 20
    least = 1e-3 * max(float(g.norm()) for g in grads[1].values())  # a key's bias has a gradient of 0 and some rounding
    worst = max((float((grads[0][k] - g).norm() / (g.norm() + least)), k) for k, g in grads[1].items())
    print("worst gradient", worst)
    assert worst[0] < 1e-4
    assert launched


@torch.inference_mode()
def test_a_wrong_kernel_fails_the_model(monkeypatch):
    """Negative control: a kernel whose gates are exchanged."""
    real = gated_triton.finish
    monkeypatch.setattr(gated_triton, "finish", lambda token, gates, *rest: real(token, gates.roll(gates.shape[-1] // 2, -1), *rest))
    model, exact = pair("gated-eye", torch.float32)
    ids = ids_of(model, 2, 16, 1)
    logits, _ = model.extend(ids, model.start(model.initial_bank(2)), model.tables(), all_logits=True)
    assert relative_l2(logits, exact(ids, exact.initial_bank(2))[0]) > 1e-3


@torch.inference_mode()
def test_reference_is_plain_pytorch(monkeypatch, launched):
    monkeypatch.setenv("LM2_KERNELS", "reference")
    model, _ = pair("gated", torch.float32)
    model.extend(ids_of(model, 1, 4, 1), model.start(model.initial_bank()), model.tables())
    assert not launched
