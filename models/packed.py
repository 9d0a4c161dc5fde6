"""Linear layers in oneDNN's own blocked layout, for float32 inference on CPU. Knows one layer; what it computes is nn.Linear's.

A row-major matrix-vector product through torch's default BLAS reaches about 11 GB/s of weights on two AVX-512 cores; the blocked layout
reaches 20-30 GB/s in decode and a fifth more in prefill (benchmarks/README.md). The layout is opaque, so packed models are for running, not for
training or saving. `LM2_KERNELS=reference` leaves every layer as it is.
"""

import os
from typing import Any

import torch
from torch import Tensor, nn

from .lm2 import LM2
from .memory import Gates

HINT_ROWS = 512  # rows of input the layout is chosen for; measured good from 1 to 512


def available(model: LM2) -> bool:
    """Whether this model, on this torch, can be packed: float32 on CPU, oneDNN built in, and not switched off."""
    wanted = os.environ.get("LM2_KERNELS", "auto") != "reference"
    ops = torch.ops.mkldnn
    built = torch.backends.mkldnn.is_available() and hasattr(ops, "_reorder_linear_weight") and hasattr(ops, "_linear_pointwise")
    return wanted and built and model.device.type == "cpu" and model.dtype == torch.float32


class PackedLinear(nn.Module):
    """y = x W^T + b with W (out, in) packed; x (..., in) float32."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.packed: Any = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), HINT_ROWS)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


class PackedGates(nn.Module):
    """`Gates`, each half packed by itself."""

    def __init__(self, gates: Gates):
        super().__init__()
        d = gates.out_features // 2
        halves = []
        for rows in (slice(0, d), slice(d, 2 * d)):
            half = nn.Linear(gates.in_features, d, device="meta")
            half.weight, half.bias = nn.Parameter(gates.weight.detach()[rows], False), nn.Parameter(gates.bias.detach()[rows], False)
            halves.append(PackedLinear(half))
        self.output, self.forget, self.bias = *halves, gates.bias

    def forward(self, read: Tensor) -> Tensor:
        return torch.cat((self.output(read), self.forget(read)), dim=-1)  # (.., 2d)


def pack(model: LM2) -> LM2:
    """Replace the model's linear layers by packed ones, one at a time (peak memory: the model and its largest matrix). Returns the model.

    A head tied to the embedding is packed as a copy: the embedding is looked up row by row and stays as it is.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Gates):
                setattr(parent, name, PackedGates(child))
            elif isinstance(child, nn.Linear):
                setattr(parent, name, PackedLinear(child))
    return model
