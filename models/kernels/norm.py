"""The operators lm2::rms_norm and lm2::add_rms_norm: Llama's norm over rows, alone and with the residual sum before it, in one pass.

Knows rows and a weight. Axes: r rows (any leading axes), d width.
"""

import torch
from torch import Tensor

from .choice import fused, on_device_of
from .recompute import register


def plain_rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """x * rsqrt(mean(x^2) + eps) * weight over the last axis, computed in weight's dtype, given in `dtype`. x (r, d), weight (d,)."""
    x = x.to(weight.dtype)
    return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight).to(dtype)  # (r, d)


def plain_add_rms_norm(x: Tensor, y: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x + y in x's dtype, and its norm in `dtype`. Both (r, d)."""
    x = x + y
    return x, plain_rms_norm(x, weight, eps, dtype)


@torch.library.custom_op("lm2::rms_norm", mutates_args=())
def rms_norm_op(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """`plain_rms_norm` in one launch. x of any float dtype and strides, the result dense."""
    if not fused(x):
        return plain_rms_norm(x, weight, eps, dtype).clone(memory_format=torch.contiguous_format)
    from . import norm_triton

    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    with on_device_of(x):
        norm_triton.rms_norm(x, None, weight, eps, None, out)
    return out


@torch.library.custom_op("lm2::add_rms_norm", mutates_args=())
def add_rms_norm_op(x: Tensor, y: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`plain_add_rms_norm` in one launch. x and y of one shape; the sum has x's dtype."""
    if x.shape != y.shape:
        raise ValueError(f"add_rms_norm: {list(x.shape)} and {list(y.shape)}: both summands need one shape")
    if not fused(x):
        total, normed = plain_add_rms_norm(x, y, weight, eps, dtype)
        return total, normed.clone()
    from . import norm_triton

    total, normed = torch.empty(x.shape, dtype=x.dtype, device=x.device), torch.empty(x.shape, dtype=dtype, device=x.device)
    with on_device_of(x):
        norm_triton.rms_norm(x, y, weight, eps, total, normed)
    return total, normed


@rms_norm_op.register_fake
def _(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    return torch.empty(x.shape, dtype=dtype, device=x.device)


@add_rms_norm_op.register_fake
def _(x: Tensor, y: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device), torch.empty(x.shape, dtype=dtype, device=x.device)


register(rms_norm_op, plain_rms_norm)
register(add_rms_norm_op, plain_add_rms_norm)


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """The operator where kernels run, plain PyTorch elsewhere. (r, d)"""
    return rms_norm_op(x, weight, eps, dtype) if fused(x) else plain_rms_norm(x, weight, eps, dtype)


def add_rms_norm(x: Tensor, y: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The operator where kernels run, plain PyTorch elsewhere. (r, d) each"""
    return add_rms_norm_op(x, y, weight, eps, dtype) if fused(x) else plain_add_rms_norm(x, y, weight, eps, dtype)
