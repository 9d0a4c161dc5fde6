"""From a checked model folder to an MLX model: names, dtypes, and matrices that are one in memory and several on disk.

Knows files and tensors; what the model computes is in model.py. Reads each tensor from its checked byte range straight into MLX.
"""

from collections.abc import Callable

import mlx.core as mx
import numpy as np

from ..models.errors import ModelFileError
from ..models.layout import ModelFolder, stays_float32
from ..models.tensorfile import read_tensor
from .linear import Dense, Linear, Quantized, stacked
from .llama import MLP, Attention, RMSNorm
from .memory import GatedMemory, ReleasedMemory, Words
from .model import LM2, Block
from .topics import Topics

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}


class _Reader:
    """Reads a folder's tensors one by one into their final dtype."""

    def __init__(self, folder: ModelFolder, dtype: mx.Dtype, cpu: bool, progress: Callable[[int], None] | None):
        self.folder, self.dtype, self.cpu, self.progress = folder, dtype, cpu, progress
        self.file = open(folder.weights, "rb")  # noqa: SIM115 - closed by load_model

    def array(self, name: str, dtype: mx.Dtype | None = None) -> mx.array:
        """One tensor, evaluated: uint32 stays, else `dtype`, or by name float32 (norms, the memory's gates) or the model's dtype."""
        info = self.folder.header.tensors[name]
        host = read_tensor(self.file, info)
        if info.dtype == "BF16":
            value = mx.array(host).view(mx.bfloat16)
        else:
            value = mx.array(host.astype(np.float32) if info.dtype == "F64" else host)
        if info.dtype != "U32":
            value = self.finite(value.astype(dtype or (mx.float32 if stays_float32(name) else self.dtype)), name)
        mx.eval(value)
        if self.progress:
            self.progress(info.nbytes)
        return value

    def finite(self, value: mx.array, name: str) -> mx.array:
        """`value`. Raises ModelFileError, naming the tensor, unless every number in it is finite."""
        if not mx.isfinite(value).all().item():
            raise ModelFileError(
                f"{self.folder.weights}: tensor {name} has values that are not finite in {str(value.dtype).split('.')[-1]}: convert or pull the model again"
            )
        return value

    def has(self, name: str) -> bool:
        return name in self.folder.header.tensors

    def linear(self, name: str, dtype: mx.Dtype | None = None) -> Linear:
        """The matrix `name`.weight with its bias, quantised if the folder's is. dtype: of packed numbers, default the model's."""
        bias = self.array(f"{name}.bias") if self.has(f"{name}.bias") else None
        if self.has(f"{name}.scales"):
            assert self.folder.quantization is not None
            bits, group = self.folder.quantization.of(name)
            dtype = dtype or self.dtype
            scales = self.array(f"{name}.scales", dtype)
            if name in self.folder.quantization.symmetric:
                offsets = self.finite(scales * -(2 ** (bits - 1)), f"{name}.scales")
            else:
                offsets = self.array(f"{name}.biases", dtype)
            return Quantized(self.array(f"{name}.weight"), scales, offsets, bits, group, self.cpu, bias)
        return Dense(self.array(f"{name}.weight"), bias)

    def norm(self, name: str) -> RMSNorm:
        return RMSNorm(self.array(f"{name}.weight"), self.folder.config.rms_norm_eps, self.cpu)

    def optional(self, name: str) -> RMSNorm | None:
        """The norm `name`, None where the config calls for none: the folder was checked against it."""
        return self.norm(name) if self.has(f"{name}.weight") else None

    def dense(self, name: str) -> Dense:
        """The matrix `name`.weight, one that is computed with in float32: unpacked here if the folder holds it packed."""
        found = self.linear(name, mx.float32)
        return found.unpacked() if isinstance(found, Quantized) else found


def load_model(
    folder: ModelFolder, dtype: str = "float32", cpu: bool = True, progress: Callable[[int], None] | None = None, compiled: bool | None = None
) -> LM2:
    """Load a checked model folder, layer by layer: peak memory is the model and about one layer, or the embedding, more.

    `cpu`: the model will run on a CPU. `compiled`: one-token steps through `mx.compile`; None: on a GPU alone (docs/decisions.md).
    `progress` is told the bytes of each tensor read.
    Raises ModelFileError for weights that are not finite in `dtype`, naming the tensor.
    """
    config = folder.config
    reader = _Reader(folder, DTYPES[dtype], cpu, progress)
    try:
        embed = reader.linear("model.embed_tokens")
        blocks = []
        heads, silu = (config.num_attention_heads, config.num_key_value_heads, config.head_dim), config.backbone.activation == "silu"
        for i in range(config.num_hidden_layers):
            p = f"model.layers.{i}."
            qkv = stacked([reader.linear(f"{p}self_attn.{x}_proj") for x in "qkv"])
            gate_up = stacked([reader.linear(f"{p}mlp.{x}_proj") for x in ("gate", "up")])
            mx.eval([m.arrays() for m in (*qkv, *gate_up)])
            blocks.append(
                Block(
                    reader.optional(f"{p}input_layernorm"),
                    Attention(
                        *heads,
                        qkv,
                        reader.linear(f"{p}self_attn.o_proj"),
                        reader.optional(f"{p}self_attn.q_norm"),
                        reader.optional(f"{p}self_attn.k_norm"),
                        config.backbone.turns(i),
                        reader.optional(f"{p}self_attn.output_norm"),
                        config.backbone.window(i),
                    ),
                    _memory(reader, f"{p}memory.") if i in config.memory.layers else None,
                    reader.optional(f"{p}post_attention_layernorm"),
                    MLP(gate_up, reader.linear(f"{p}mlp.down_proj"), silu, reader.optional(f"{p}mlp.output_norm")),
                )
            )
        norm = reader.norm("model.norm")
        head = embed if config.tie_word_embeddings else reader.linear("lm_head")
    finally:
        reader.file.close()
    return LM2(config, embed, blocks, norm, head, cpu, not cpu if compiled is None else compiled)


def _memory(reader: _Reader, p: str) -> GatedMemory | ReleasedMemory:
    m = reader.folder.config.memory
    if m.cell == "released":
        return ReleasedMemory(
            m.heads,
            m.head_dim,
            query=reader.linear(f"{p}query_proj"),
            key=reader.linear(f"{p}key_proj"),
            value=reader.linear(f"{p}value_proj"),
            mlp=reader.dense(f"{p}mlp"),
            norm1=(reader.array(f"{p}norm1.weight"), reader.array(f"{p}norm1.bias")),
            norm2=(reader.array(f"{p}norm2.weight"), reader.array(f"{p}norm2.bias")),
            token_scale=reader.array(f"{p}token_gate.scale"),
            token_gate=reader.dense(f"{p}token_gate"),
            bank_gate=reader.dense(f"{p}bank_gate"),
            input_bias=reader.array(f"{p}input_bias"),
            forget_bias=reader.array(f"{p}forget_bias"),
            cpu=reader.cpu,
        )
    return GatedMemory(
        m.heads,
        m.head_dim,
        norm=reader.norm(f"{p}norm"),
        bank_norm=reader.norm(f"{p}bank_norm"),
        q=reader.linear(f"{p}q_proj"),
        k=reader.linear(f"{p}k_proj"),
        before=reader.linear(f"{p}k_before_proj") if m.keys == "pair" else None,
        words=Words(reader.norm(f"{p}topic_norm"), reader.linear(f"{p}v_topic_proj")) if m.values == "topics" else None,
        v=reader.linear(f"{p}v_proj"),
        o=reader.linear(f"{p}o_proj") if m.output_projection else None,
        output_gate=reader.dense(f"{p}output_gate"),
        open_gate=reader.dense(f"{p}open_gate") if m.opens == "both" else None,
        input_gate=reader.dense(f"{p}input_gate"),
        forget_gate=reader.dense(f"{p}forget_gate"),
        content=reader.dense(f"{p}content"),
        scale=reader.array(f"{p}scale") if m.scale else None,
        both=m.content == "both",
        cpu=reader.cpu,
        topics=_topics(reader, f"{p}topics.") if reader.has(f"{p}topics.gain") else None,
    )


def _topics(reader: _Reader, p: str) -> Topics:
    m = reader.folder.config.memory
    write, query = (reader.dense(f"{p}{name}") for name in ("write", "query"))
    return Topics(m.topics, m.topic_back, m.topic_around, write, query, reader.array(f"{p}keep"), reader.array(f"{p}gain"))
