"""A gradient for operators that have none of their own: the plain form is run again and differentiated. Knows no operator."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def register(op: Any, plain: Callable[..., Tensor | tuple[Tensor, ...]]) -> None:
    """Give the functional torch.library operator `op` the gradient of `plain`, which takes the same arguments and gives the same results."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.tensor_at = [k for k, x in enumerate(inputs) if isinstance(x, Tensor)]
        ctx.others = [None if isinstance(x, Tensor) else x for x in inputs]
        ctx.save_for_backward(*(inputs[k] for k in ctx.tensor_at))

    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        inputs, wanted = list(ctx.others), []
        for k, x in zip(ctx.tensor_at, ctx.saved_tensors, strict=True):
            inputs[k] = x.detach().requires_grad_(ctx.needs_input_grad[k])
            if ctx.needs_input_grad[k]:
                wanted.append(k)
        with torch.enable_grad():
            made = plain(*inputs)
        made = made if isinstance(made, tuple) else (made,)
        pairs = [(y, g) for y, g in zip(made, grads, strict=True) if g is not None and y.requires_grad]
        found = torch.autograd.grad([y for y, _ in pairs], [inputs[k] for k in wanted], [g for _, g in pairs], allow_unused=True)
        out: list[Any] = [None] * len(inputs)
        for k, g in zip(wanted, found, strict=True):
            out[k] = g
        return tuple(out)

    op.register_autograd(backward, setup_context=setup_context)
