"""lm2::gated_memory_update through Triton's interpreter: against float64, every dtype, forward and backward, poisoned outputs, wrong kernels."""

import kernel_kit as kit
import pytest
import torch

from lm2.models.kernels import choice, update_triton
from lm2.models.kernels.update import gated_memory_update, update, update_backward
from lm2.models.update import gated_memory_update as plain

ALL = (torch.float64, *kit.DTYPES)


def gate(dtype):
    return (1e-12, 1e-12) if dtype == torch.float64 else kit.GATES[dtype]


def test_these_tests_do_run_triton():
    assert choice.triton_runs(torch.zeros(1)) and "interpreted" in choice.describe(torch.device("cpu"))


@pytest.mark.parametrize("dtype", ALL, ids=str)
@pytest.mark.parametrize("shape", kit.WIDTHS, ids=str)
def test_forward(shape, dtype):
    args = kit.update_args(shape, dtype)
    got = update(*args)
    assert got.is_contiguous() and got.dtype == dtype
    kit.assert_close("new", got.double(), plain(*kit.exact(args)), *gate(dtype))
    assert torch.equal(gated_memory_update(*args), got), "the model takes the operator"


@pytest.mark.parametrize("dtype", ALL, ids=str)
@pytest.mark.parametrize("shape", kit.WIDTHS, ids=str)
def test_backward(shape, dtype):
    args = kit.update_args(shape, dtype)
    g = kit.drawer(7)(shape, dtype)
    exact = [a.clone().requires_grad_() for a in kit.exact(args)]
    want = torch.autograd.grad(plain(*exact), exact, g.double())
    for name, got, w in zip("ifzo", update_backward(g, *args), want, strict=True):
        kit.assert_close(name, got.double(), w, *gate(dtype))


def test_gradcheck():
    x = [a.clone().requires_grad_() for a in kit.update_args((2, 1, 3), torch.float64)]
    assert torch.autograd.gradcheck(update, x)


def test_the_gradient_of_a_shared_gate_is_summed():
    """f of shape (d,), expanded: what a layer with an unwritten bank feeds."""
    f = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    i, _, z, old = kit.update_args((2, 3, 4), torch.float64)
    gated_memory_update(i, f.expand_as(old), z, old).sum().backward()
    kit.assert_close("f", f.grad, (old * 0.25).sum((0, 1)), 1e-12)


def test_a_kernel_that_forgets_its_last_sequence_is_seen(monkeypatch):
    """Negative control of the poison: the memory was the right result's a moment ago, so unpoisoned it could hold the right numbers."""
    args = kit.update_args((3, 5, 37), torch.float32)
    want = update(*args).clone()
    right = update_triton.forward
    monkeypatch.setattr(update_triton, "forward", lambda *args: right(*(x[:-1] for x in args)))
    got = update(*args)
    assert got[-1].isnan().all() and torch.equal(got[:-1], want[:-1])
    with pytest.raises(AssertionError, match="not finite"):
        kit.close("new", got, plain(*kit.exact(args)))


@pytest.mark.parametrize("dtype", kit.DTYPES, ids=str)
def test_every_element_of_a_poisoned_output_is_written_and_none_beyond(dtype):
    args = kit.update_args((3, 5, 37), dtype)
    room = torch.full((3 * 5 * 37 + 100,), float("nan"), dtype=dtype)
    update_triton.forward(*args, room[: 3 * 5 * 37].view(3, 5, 37))
    assert not room[: 3 * 5 * 37].isnan().any() and room[3 * 5 * 37 :].isnan().all()
    rooms = [torch.full((3, 5, 37), float("nan"), dtype=dtype) for _ in range(4)]
    update_triton.backward(torch.ones(3, 5, 37, dtype=dtype), *args, tuple(rooms))
    assert not torch.stack(rooms).isnan().any()


def test_small_candidates_keep_their_relative_precision():
    z = torch.logspace(-30, 0, 200)[None, None]
    big, zero = torch.full_like(z, 40.0), torch.zeros_like(z)
    got = update(big, zero, z, zero).double()
    assert ((got - z.double().tanh()) / z.double().tanh()).abs().max() < 1e-6


def test_nan_and_infinities():
    inf, nan = float("inf"), float("nan")
    i = torch.tensor([[[nan, 0, inf, -inf, -inf, 0, 0]]])
    f = torch.tensor([[[0, nan, -inf, inf, -inf, 0, 0]]])
    z = torch.tensor([[[0, 0, inf, 0, 0, -inf, nan]]])
    old = torch.tensor([[[0, 0, 5, 3, inf, 1, 1]]])
    assert torch.allclose(update(i, f, z, old), plain(i, f, z, old), equal_nan=True)


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (5,), (2, 3, 4, 5)], ids=str)
def test_other_ranks_and_empty_axes(shape):
    args = [kit.drawer(s)(shape) for s in range(4)]
    assert update(*args).shape == torch.Size(shape)
    kit.assert_close("new", update(*args), plain(*args), 1e-5)


def test_inputs_that_differ_are_refused_or_left_to_plain_pytorch():
    i, f, z, old = kit.update_args((1, 2, 3), torch.float32)
    with pytest.raises(ValueError, match=r"\[1, 2, 3\] torch.float32 and \[1, 2, 3\] torch.float16"):
        update(i, f, z, old.half())
    assert torch.equal(gated_memory_update(i, f, z, old.half()), plain(i, f, z, old.half()))


@pytest.mark.parametrize("wrong", ["gates", "candidate"])
def test_a_wrong_kernel_is_noticed(wrong):
    i, f, z, old = kit.update_args((3, 5, 37), torch.float32)
    got = update(f, i, z, old) if wrong == "gates" else update(i, f, z * 1.01, old)
    with pytest.raises(AssertionError):
        kit.close("new", got, plain(*kit.exact((i, f, z, old))))


def test_switched_off(monkeypatch):
    monkeypatch.setenv("LM2_KERNELS", "reference")
    monkeypatch.setattr(update_triton, "forward", None)
    args = kit.update_args((1, 2, 3), torch.float32)
    assert torch.equal(update(*args), plain(*args)) and torch.equal(gated_memory_update(*args), plain(*args))
    assert choice.describe(torch.device("cuda")) == "plain PyTorch (LM2_KERNELS=reference)"
