"""A memory for a finished Llama: which layers get one, its size, and the values its weights start from.

Knows the two cells' tensors and model.md's warm start; computes no model. Every random number comes from a seed, the
layer and the tensor's name, so a value does not depend on the order of writing. Matrices made here and not copied hold numbers that float16 has,
and are stored as such.
Axes: d hidden, e = heads x head_dim.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ..config import LM2Config, MemoryConfig
from ..errors import ConvertError
from ..layout import memory_shapes
from ..tensorfile import to_float32
from .source import SourceTensor, rows_per_block, whole
from .typical import energies, factors, times_rows

RECIPE = 2  # raised whenever a new memory of the same request gets other layers, sizes or values: it makes another model
SLOTS = 512
MEMORY_LAYERS = 3
GATE_SCALE = 0.2  # standard deviation of a new gate's weights, times d ** -0.5
OUTPUT_BIAS, INPUT_BIAS, FORGET_BIAS = 0.0, 2.0, 3.0
CONTENT = 0.5
READ_SCALE = 2.0**-7  # how loud an untrained memory is heard (docs/decisions.md); a power of two keeps packed numbers packed, and float32 and bfloat16 exact
RELEASED_FORGET_BIAS = 1.0


@dataclass(frozen=True)
class MemoryRequest:
    """What a user asks of the memory; None means the default. `gate_pool` is for cell released, `seed` for what is
    drawn at random, `scale` (cell gated) what the output projection is multiplied by. `adapter`: the folder of a trained memory, which then
    decides all of these."""

    cell: str | None = None
    layers: tuple[int, ...] | None = None
    slots: int | None = None
    chunk: int | None = None
    gate_pool: str | None = None
    seed: int = 0
    scale: float = READ_SCALE
    adapter: Path | None = None


def default_layers(count: int) -> tuple[int, ...]:
    """Three layers from the middle of a model of `count` layers upward, about count / 10 apart: 15, 18, 21 of 30."""
    step = max(1, (count + 5) // 10)
    return tuple(i for i in range(count // 2, count // 2 + MEMORY_LAYERS * step, step) if i < count)


def plan_memory(request: MemoryRequest, hidden: int, layers: int, heads: int, head_dim: int, positions: int) -> MemoryConfig:
    """The memory block for a backbone. Raises ConvertError for options the cell does not have; the config's own check
    does the rest."""
    if request.cell == "released":
        for option, value in (("--memory-slots", request.slots), ("--memory-chunk", request.chunk)):
            if value not in (None, hidden):
                raise ConvertError(f"{option} {value} must be {hidden}, the hidden size, for --memory-cell released (or left out)")
        if request.layers not in (None, tuple(range(layers))):
            raise ConvertError(f"--memory-layers must name all {layers} layers for --memory-cell released (or be left out)")
        if hidden > positions:
            raise ConvertError(
                f"--memory-cell released needs chunks of {hidden}, the model has {positions} positions: use --memory-cell gated"
            )
        heads = heads if hidden % heads == 0 else 1
        pool = request.gate_pool or "chunk"
        return MemoryConfig("released", hidden, hidden, tuple(range(layers)), heads, hidden // heads, "zeros", gate_pool=pool)
    if request.gate_pool not in (None, "chunk"):
        raise ConvertError(f"--gate-pool {request.gate_pool} is for --memory-cell released: leave it out")
    slots = request.slots or (min(SLOTS, positions) if request.chunk is None else SLOTS if SLOTS % request.chunk == 0 else request.chunk)
    chunk = request.chunk or min(slots, positions)
    chosen = default_layers(layers) if request.layers is None else tuple(sorted(set(request.layers)))
    return MemoryConfig("gated", slots, chunk, chosen, heads, head_dim, "zeros", output_projection=True)


def start_values(
    config: LM2Config, layer: int, backbone: Mapping[str, SourceTensor], seed: int, scale: float = READ_SCALE
) -> dict[str, SourceTensor]:
    """Every memory tensor of one layer, by its full name. The backbone's tensors are read when a block is asked for."""
    prefix = f"model.layers.{layer}."
    out: dict[str, SourceTensor] = {}
    for part, shape in memory_shapes(config).items():
        name = f"{prefix}memory.{part}"
        if config.memory.cell == "released":
            out[name] = _released(name, part, shape, config.hidden_size, seed)
        else:
            out[name] = _gated(name, part, shape, prefix, config, backbone, seed, scale)
    return out


def _gated(
    name: str,
    part: str,
    shape: tuple[int, ...],
    prefix: str,
    config: LM2Config,
    backbone: Mapping[str, SourceTensor],
    seed: int,
    scale: float,
) -> SourceTensor:
    d = config.hidden_size
    if part == "q_proj.weight":
        source = attention_matrix(config, prefix, part, backbone)
        return SourceTensor(name, source.dtype, shape, source.blocks)
    if part == "o_proj.weight":
        source = attention_matrix(config, prefix, part, backbone)
        return SourceTensor(name, _wide(source.dtype), shape, partial(_multiplied, source, scale))
    if part in ("k_proj.weight", "v_proj.weight"):
        source = attention_matrix(config, prefix, part, backbone)
        groups = config.num_attention_heads // config.num_key_value_heads
        return SourceTensor(name, _wide(source.dtype), shape, partial(_repeat_heads, source, config.head_dim, groups))
    if part in ("norm.weight", "bank_norm.weight"):
        if config.backbone.norms == "after":
            return _constant(name, shape, 1.0)  # attention sees the stream as it is
        source = backbone[f"{prefix}input_layernorm.weight"]
        return SourceTensor(name, source.dtype, shape, source.blocks)
    if part == "content.weight":
        return SourceTensor(name, "F16", shape, partial(_diagonal, d, CONTENT))
    biases = {"output_gate.bias": OUTPUT_BIAS, "input_gate.bias": INPUT_BIAS, "forget_gate.bias": FORGET_BIAS}
    if part in biases:
        return _constant(name, shape, biases[part])
    return _normal(name, shape, GATE_SCALE * d**-0.5, seed)


def attention_matrix(config: LM2Config, prefix: str, part: str, backbone: Mapping[str, SourceTensor]) -> SourceTensor:
    """The matrix `part` of a layer's attention as a memory without the backbone's norms computes with it: its rows times what those do on average.

    q and k: their own norms. o: the norm after attention, where there is one. Biases are not a memory's.
    """
    b, p = config.backbone, f"{prefix}self_attn."
    source = backbone[f"{p}{part}"]
    if part[0] in "qk" and b.qk_norm != "none":
        energy = energies(source, _sizes(config, prefix, backbone))  # (r,)
        return times_rows(source, factors(energy, whole(backbone[f"{p}{part[0]}_norm.weight"])))
    if part[0] == "o" and b.norms != "before":
        values = energies(backbone[f"{p}v_proj.weight"], _sizes(config, prefix, backbone)).reshape(-1, config.head_dim)  # (k, e)
        heads = np.repeat(values, config.num_attention_heads // config.num_key_value_heads, axis=0).reshape(-1)  # (h e,)
        return times_rows(source, factors(energies(source, np.sqrt(heads)), whole(backbone[f"{p}output_norm.weight"])))
    return source


def _sizes(config: LM2Config, prefix: str, backbone: Mapping[str, SourceTensor]) -> np.ndarray:
    """How large a memory's normed inputs are (d,)."""
    return np.ones(config.hidden_size, np.float32) if config.backbone.norms == "after" else whole(backbone[f"{prefix}input_layernorm.weight"])


def _released(name: str, part: str, shape: tuple[int, ...], d: int, seed: int) -> SourceTensor:
    """With a zero bank and zero biases everything read is zero, so what joins the attention output is exactly zero."""
    if part == "forget_bias":
        return _constant(name, shape, RELEASED_FORGET_BIAS)
    if part in ("norm1.weight", "norm2.weight", "token_gate.scale"):
        return _constant(name, shape, 1.0)
    if part.endswith("bias"):
        return _constant(name, shape, 0.0)
    return _normal(name, shape, d**-0.5, seed)


def _wide(dtype: str) -> str:
    return "F64" if dtype == "F64" else "F32"


def _multiplied(source: SourceTensor, factor: float) -> Iterator[np.ndarray]:
    """Each block times `factor`, in float32 (float64 stays)."""
    for block in source.blocks():
        values = block if source.dtype == "F64" else to_float32(block, source.dtype)
        yield values * values.dtype.type(factor)


def _repeat_heads(source: SourceTensor, head_dim: int, groups: int) -> Iterator[np.ndarray]:
    """Rows of each key/value head, `groups` times in a row, so that query head h finds its own copy at h."""
    values = whole(source)  # (kv heads * head_dim, d)
    for start in range(0, values.shape[0], head_dim):
        for _ in range(groups):
            yield values[start : start + head_dim]


def _constant(name: str, shape: tuple[int, ...], value: float) -> SourceTensor:
    return SourceTensor(name, "F32", shape, lambda: iter([np.full(shape, value, np.float32)]))


def _diagonal(d: int, value: float) -> Iterator[np.ndarray]:
    step = rows_per_block((d, d), 4)
    for start in range(0, d, step):
        yield np.eye(min(step, d - start), d, start, dtype=np.float16) * np.float16(value)


def _normal(name: str, shape: tuple[int, ...], deviation: float, seed: int) -> SourceTensor:
    key = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:16], "little")
    return SourceTensor(name, "F16", shape, partial(_draw, key, shape, deviation))


def _draw(key: int, shape: tuple[int, ...], deviation: float) -> Iterator[np.ndarray]:
    generator = np.random.Generator(np.random.PCG64(key))
    step = rows_per_block(shape, 4)
    for start in range(0, shape[0], step):
        block = generator.standard_normal((min(step, shape[0] - start), *shape[1:]), dtype=np.float32)
        yield (block * np.float32(deviation)).astype(np.float16)
