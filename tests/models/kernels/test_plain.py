"""The operators without Triton: their plain form on CPU tensors, their gradients, and which form runs where. Needs no Triton."""

import subprocess
import sys

import kernel_kit as kit
import pytest
import torch

from lm2.models.kernels import attention, choice, gated, norm, released, rotary, stream
from lm2.models.kernels.update import gated_memory_update, update, update_backward
from lm2.models.update import gated_memory_update as plain

pytestmark = pytest.mark.skipif(choice.INTERPRETED, reason="the process was started with Triton's interpreter")


def test_operators_on_the_cpu_are_plain_pytorch():
    f32 = torch.float32
    args = kit.update_args((2, 3, 5), f32)
    assert torch.equal(update(*args), plain(*args)) and torch.equal(gated_memory_update(*args), plain(*args))
    for op, form, given in (
        (norm.rms_norm_op, norm.plain_rms_norm, kit.norm_args((2, 3, 5), torch.bfloat16, f32)),
        (gated.finish_op, gated.plain_finish, kit.finish_args((2, 3, 5), torch.bfloat16)),
        (gated.step_op, gated.plain_step, kit.step_args((2, 3, 5), torch.bfloat16)),
        (attention.attention_op, attention.plain_attention, kit.attention_args((3, 4, 2, 9, 8), f32, False)),
        (lambda *a: attention.attention_op(*a, 4), lambda *a: attention.plain_attention(*a, window=4), kit.attention_args((3, 4, 2, 9, 8), f32, False)),
        (rotary.rotate_store_op, rotary.plain_rotate_store, kit.rotary_args((3, 4, 2, 9, 8), torch.bfloat16)),
        (stream.pool_op, stream.plain_pool, kit.pool_args((2, 3, 5), torch.bfloat16)),
        (released.open_op, released.plain_open, kit.open_args((2, 3, 5), torch.bfloat16)),
        (released.close_op, released.plain_close, kit.close_args((2, 3, 5), True)),
    ):
        got, want = op(*given), form(*given)
        for x, y in zip(*((r if isinstance(r, tuple) else (r,)) for r in (got, want)), strict=True):
            assert x.dtype == y.dtype and torch.equal(x, y), op


def test_gradcheck_without_triton():
    x = [a.clone().requires_grad_() for a in kit.update_args((2, 3, 5), torch.float64)]
    assert torch.autograd.gradcheck(update, x)
    g = kit.drawer(1)((2, 3, 5), torch.float64)
    wanted = torch.autograd.grad(plain(*x), x, g)
    for got, want in zip(update_backward(g, *x), wanted, strict=True):
        kit.assert_close("gradient", got.detach(), want, 1e-12)


def test_a_swapped_gradient_is_noticed():
    """Negative control of the check above."""
    i, f, z, old = (a.clone() for a in kit.update_args((2, 3, 5), torch.float64))
    right = update_backward(torch.ones_like(i), i, f, z, old)
    with pytest.raises(AssertionError):
        kit.assert_close("gradient", update_backward(torch.ones_like(i), f, i, z, old)[0], right[0], 1e-12)


def test_which_form_runs(monkeypatch):
    cuda = torch.device("cuda")
    x = torch.zeros(2)
    assert not choice.triton_runs(x) and not choice.fused(x)
    assert choice.describe(torch.device("cpu")) == "plain PyTorch"
    monkeypatch.setattr(choice, "installed", lambda: False)
    assert "triton is not installed" in choice.describe(cuda)
    monkeypatch.setattr(choice, "INTERPRETED", True)
    assert not choice.triton_runs(x)
    monkeypatch.setattr(choice, "installed", lambda: True)
    assert choice.fused(x) and choice.triton_runs(x.double()) and not choice.fused(x.double())
    monkeypatch.setenv("LM2_KERNELS", "reference")
    assert not choice.triton_runs(x) and choice.describe(cuda) == "plain PyTorch (LM2_KERNELS=reference)"


def test_a_model_on_the_cpu_imports_no_triton():
    program = (
        "import sys, torch, lm2.models.lm2, lm2.runtime.backends.torch_backend as t, tiny;"
        "from lm2.models.weights import random_model;"
        "b = t.TorchBackend(random_model(tiny.config(), 0)); b.commit(b.extend([1, 2], b.start())[1]);"
        "assert not [m for m in sys.modules if m.endswith('_triton') and m.startswith('lm2')], 'kernels';"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={"PYTHONPATH": "tests", "PATH": ""}, timeout=120
    )
    assert done.returncode == 0, done.stderr
