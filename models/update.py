"""The gated memory update: the one step that decides what a bank keeps. Knows tensors of rows, no weights and no model.

Axes: b batch, t rows updated, d width.
"""

import torch
from torch import Tensor


def gated_memory_update(i: Tensor, f: Tensor, z: Tensor, old: Tensor) -> Tensor:
    """new = sigmoid(i) * tanh(z) + sigmoid(f) * old (LM2 equation 6). All (b, t, d) of one dtype; elementwise."""
    return torch.sigmoid(i) * torch.tanh(z) + torch.sigmoid(f) * old  # (b, t, d)
