"""Low-rank changes of a backbone's matrices, which hold while its memory is in use: what they are called, and a matrix read with its change in it.

W' = W + change_out change_in (LoRA, arXiv 2106.09685, without its scale). The weights file keeps the backbone's own matrix and the two factors beside
it, so that the backbone alone is what it was; whoever reads a matrix reads it changed, so that no backend computes anything more.
Knows names, shapes and NumPy arrays. Axes: o outputs, i inputs, r rank.
"""

from typing import BinaryIO

import numpy as np

from .config import LM2Config
from .tensorfile import Header, read_tensor, to_float32

INSIDE, OUT = "change_in", "change_out"
# Matrices that share their input share the inner factor: the group, and what of it lies where in change_out.
GROUPS = {
    "self_attn.qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "self_attn.o_proj": ("o_proj",),
    "mlp.gate_up_proj": ("gate_proj", "up_proj"),
    "mlp.down_proj": ("down_proj",),
}


def group_shapes(config: LM2Config) -> dict[str, tuple[int, int]]:
    """(o, i) of each group of a layer's matrices."""
    c = config
    d, q, kv = c.hidden_size, c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    sizes = ((q + 2 * kv, d), (d, q), (2 * c.intermediate_size, d), (d, c.intermediate_size))
    return dict(zip(GROUPS, sizes, strict=True))


def change_shapes(config: LM2Config) -> dict[str, tuple[int, ...]]:
    """Every factor that the config calls for and its shape; none without `memory.low_rank`."""
    r = config.memory.low_rank
    if not r:
        return {}
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(config.memory.low_rank_from, config.num_hidden_layers):
        for group, (o, i) in group_shapes(config).items():
            p = f"model.layers.{layer}.{group}."
            shapes |= {p + INSIDE: (r, i), p + OUT: (o, r)}
    return shapes


def is_change(name: str) -> bool:
    """Whether a tensor is a factor of a change."""
    return name.endswith((INSIDE, OUT))


def factors_of(name: str, config: LM2Config) -> tuple[str, str, slice] | None:
    """The names of the factors that change the matrix `name`, and which rows of the outer one; None for what is not changed."""
    parts = name.split(".")
    if not config.memory.low_rank or len(parts) != 6 or parts[1] != "layers" or parts[5] != "weight" or int(parts[2]) < config.memory.low_rank_from:
        return None
    for group, members in GROUPS.items():
        if group.startswith(parts[3] + ".") and parts[4] in members:
            q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
            sizes = {"q_proj": q, "k_proj": kv, "v_proj": kv, "gate_proj": config.intermediate_size, "up_proj": config.intermediate_size}
            begin = sum(sizes[m] for m in members[: members.index(parts[4])])
            p = f"model.layers.{parts[2]}.{group}."
            return p + INSIDE, p + OUT, slice(begin, begin + sizes.get(parts[4], group_shapes(config)[group][0]))
    return None


def read_weight(f: BinaryIO, header: Header, config: LM2Config, name: str) -> tuple[np.ndarray, str]:
    """A tensor as the model computes with it, and its dtype code: as the file has it, or float32 where its change is in it. A file without the factors
    (packed for MLX, from changed matrices) has what it has. Raises TensorFileError as read_tensor does."""
    info = header.tensors[name]
    raw = read_tensor(f, info)
    found = factors_of(name, config)
    if found is None or found[0] not in header.tensors:
        return raw, info.dtype
    inside, out = (to_float32(read_tensor(f, header.tensors[n]), header.tensors[n].dtype) for n in found[:2])  # (r, i), (o of the group, r)
    return to_float32(raw, info.dtype) + out[found[2]] @ inside, "F32"  # (o, i)
