"""Shapes that benchmarks/gpu.py measures, and the least bytes each figure has to move: computed, not measured. Needs neither torch nor a device.

Axes: b batch, L layers, l banks, T positions, n rows, d hidden.
"""

import math
from dataclasses import replace

from lm2.models.config import LM2Config, MemoryConfig, RopeConfig
from lm2.models.layout import stays_float32, tensor_shapes

NOMINAL = {"H200": 4.8e12, "H100 SXM": 3.35e12}  # bytes per second on the data sheets; a copy reaches less
ONCE_PER_CHUNK = ("memory.k_proj", "memory.v_proj", "memory.bank_norm")  # cell gated


def smollm2() -> LM2Config:
    """SmolLM2-135M with a memory in 4 layers, 512 rows: one layer more than `lm2 pull` gives it, and the vector s."""
    memory = MemoryConfig("gated", 512, 512, (14, 17, 20, 23), 9, 64, "zeros", True, True)
    return LM2Config(
        49152, 576, 1536, 30, 9, 3, 64, memory, rope=RopeConfig(100000.0), tie_word_embeddings=True, rms_norm_eps=1e-5, name="SmolLM2-135M"
    )


def published(cell: str) -> LM2Config:
    """LM2-1.7B: 16 layers, hidden 2048, ffn 8192, 32 heads on 8, 2048 rows, a memory in every layer; cell released (streaming) as published, or gated."""
    every = tuple(range(16))
    if cell == "released":
        memory = MemoryConfig("released", 2048, 2048, every, 32, 64, "eye", gate_pool="causal")
    else:
        memory = MemoryConfig("gated", 2048, 2048, every, 32, 64, "zeros", True)
    return LM2Config(
        128256,
        2048,
        8192,
        16,
        32,
        8,
        64,
        memory,
        rope=RopeConfig(500000.0),
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        name=f"LM2-1.7B {cell}",
    )


def toy(config: LM2Config) -> LM2Config:
    """The same kind of model, small enough for an interpreter."""
    m = config.memory
    width, layers = 32, tuple(range(min(2, len(m.layers))))
    rows = width if m.cell == "released" else 16
    memory = replace(m, slots=rows, chunk=rows, layers=layers, heads=2, head_dim=16)
    return replace(
        config, vocab_size=61, hidden_size=width, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, memory=memory, name=f"toy of {config.name}",
    )  # fmt: skip


def without_memory(config: LM2Config) -> LM2Config:
    """The backbone alone, in chunks of the same length."""
    return replace(config, memory=replace(config.memory, cell="gated", gate_pool="chunk", layers=(), init="zeros"))


def weight_bytes(config: LM2Config, item: int = 2) -> int:
    """Weights that one decode step reads at least once, for any batch; an untied embedding is looked up, not read."""
    total = 0
    for name, shape in tensor_shapes(config).items():
        if any(part in name for part in ONCE_PER_CHUNK) and config.memory.cell == "gated":
            continue
        if name == "model.embed_tokens.weight" and not config.tie_word_embeddings:
            continue
        total += math.prod(shape) * (4 if stays_float32(name) else item)
    return total


def state_bytes(config: LM2Config, batch: int, length: int, item: int = 2) -> int:
    """Keys and values at `length` positions, what is read of the memory, and rows read and written, for one step of `batch` sequences."""
    c, m = config, config.memory
    own = 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * length * item
    if m.cell == "gated":
        memory = len(m.layers) * 2 * m.slots * m.heads * m.head_dim * item + m.banks * 2 * c.hidden_size * 4
        memory += m.slots * c.hidden_size * 4 if m.topics else 0
    else:
        memory = c.num_hidden_layers * (2 * length * m.slots * item + 2 * c.hidden_size * 4) + 2 * c.hidden_size * 4
    return batch * (own + memory)


def step_bytes(config: LM2Config, batch: int, length: int, item: int = 2) -> int:
    """The least a decode step moves."""
    return weight_bytes(config, item) + state_bytes(config, batch, length, item)


def floors() -> list[list[str]]:
    """Rows of a table: shape, batch, megabytes of a step with the memory on and off, their ratio, milliseconds at the nominal bandwidths. bfloat16."""
    rows = []
    for config in (smollm2(), published("released"), published("gated")):
        for batch in (1, 8, 64):
            half = config.memory.chunk // 2
            on, off = step_bytes(config, batch, half), step_bytes(without_memory(config), batch, half)
            times = [f"{on / speed * 1e3:.3f}" for speed in NOMINAL.values()]
            rows.append([config.name, str(batch), f"{on / 1e6:.0f}", f"{off / 1e6:.0f}", f"+{(on / off - 1) * 100:.1f}%", *times])
    return rows


HEADER = ["shape", "batch", "MB per step, memory on", "off", "on / off", *(f"ms at {name}'s nominal bandwidth" for name in NOMINAL)]
