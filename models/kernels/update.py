"""The operator lm2::gated_memory_update: from gate pre-activations, candidate and old rows to new rows in one pass, forward and backward.

Knows tensors of rows, no weights. Source: arXiv 2502.06049, equation 6. Axes: b batch, t rows, d width.
"""

from typing import Any

import torch
from torch import Tensor

from ..update import gated_memory_update as plain
from .choice import on_device_of, triton_runs


def gated_memory_update(i: Tensor, f: Tensor, z: Tensor, old: Tensor) -> Tensor:
    """new = sigmoid(i) * tanh(z) + sigmoid(f) * old, all (b, t, d): the operator where kernels run, plain PyTorch elsewhere.

    The operator takes float64, float32, bfloat16 and float16, computes halves in float32 and rounds once. Differentiable in all four.
    """
    if triton_runs(i) and i.dtype == f.dtype == z.dtype == old.dtype and i.shape == f.shape == z.shape == old.shape:
        return update(i, f, z, old)  # (b, t, d)
    return plain(i, f, z, old)  # (b, t, d)


@torch.library.custom_op("lm2::gated_memory_update", mutates_args=())
def update(i: Tensor, f: Tensor, z: Tensor, old: Tensor) -> Tensor:
    """One shape and dtype in, the same out, dense. Raises ValueError naming both where they differ."""
    _check(i, f, z, old)
    if not triton_runs(i):
        return plain(i, f, z, old).contiguous()
    from . import update_triton

    new = torch.empty(i.shape, dtype=i.dtype, device=i.device)
    with on_device_of(i):
        update_triton.forward(i, f, z, old, new)
    return new


@torch.library.custom_op("lm2::gated_memory_update_backward", mutates_args=())
def update_backward(g: Tensor, i: Tensor, f: Tensor, z: Tensor, old: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of i, f, z, old from the gradient g of the result. All of one shape and dtype."""
    _check(i, f, z, old, g)
    if not triton_runs(i):
        si, sf, c = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(z)
        made = (g * c * si * (1 - si), g * old * sf * (1 - sf), g * si * (1 - c * c), g * sf)
        return made[0].contiguous(), made[1].contiguous(), made[2].contiguous(), made[3].contiguous()
    from . import update_triton

    gi, gf, gz, gold = (torch.empty(i.shape, dtype=i.dtype, device=i.device) for _ in range(4))
    with on_device_of(g):
        update_triton.backward(g, i, f, z, old, (gi, gf, gz, gold))
    return gi, gf, gz, gold


@update.register_fake
def _(i: Tensor, f: Tensor, z: Tensor, old: Tensor) -> Tensor:
    return torch.empty(i.shape, dtype=i.dtype, device=i.device)


@update_backward.register_fake
def _(g: Tensor, i: Tensor, f: Tensor, z: Tensor, old: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gi, gf, gz, gold = (torch.empty(i.shape, dtype=i.dtype, device=i.device) for _ in range(4))
    return gi, gf, gz, gold


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


update.register_autograd(lambda ctx, g: update_backward(g, *ctx.saved_tensors), setup_context=_save)


def _check(i: Tensor, *others: Tensor) -> None:
    for x in others:
        if x.shape != i.shape or x.dtype != i.dtype:
            raise ValueError(
                f"gated_memory_update: {list(i.shape)} {i.dtype} and {list(x.shape)} {x.dtype}: all inputs need one shape and one dtype"
            )
