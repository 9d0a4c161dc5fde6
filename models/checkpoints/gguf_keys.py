"""Which metadata keys of a GGUF are read, and which would make its model something else.

Knows key names. Keys of the architecture (`llama.*`, `qwen2.*`) that are in neither list are refused by name unless they say no, nothing or zero;
what stands under other prefixes (general, split, quantize, whatever a tool leaves) changes no number of the model.
"""

from pathlib import Path

from ..errors import ConvertError
from .gguf_families import Architecture
from .gguf_header import GGUFHeader

READ = {
    "block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "attention.layer_norm_rms_epsilon",
    "rope.dimension_count", "rope.freq_base", "rope.scaling.type", "rope.scaling.factor", "rope.scale_linear",
    "rope.scaling.original_context_length",
}  # fmt: skip
ATTENTION = "rope.scaling.attn_factor"
YARN = {f"rope.scaling.yarn_{name}" for name in ("ext_factor", "attn_factor", "beta_fast", "beta_slow")} | {ATTENTION}  # read where the type is yarn
HARMLESS = {"rope.scaling.finetuned", "tensor_data_layout"}
# What llama.cpp takes for "off"; 0 is off for all of them.
OFF = {
    "logit_scale": 1, "embedding_scale": 1, "residual_scale": 1, "attention.output_scale": 1,
    "attention.temperature_scale": 1, "attention.causal": True, ATTENTION: 1,
}  # fmt: skip


def check_keys(header: GGUFHeader, path: Path, architecture: Architecture) -> None:
    """Raise ConvertError, naming the file, the key and its value, for a key of the model that is not understood."""
    scaled = YARN if header.metadata.get(f"{architecture.name}.rope.scaling.type") == "yarn" else {ATTENTION} if architecture.longrope else set()
    read = {*READ, *HARMLESS, *scaled, *architecture.numbers, *architecture.layers}
    for key, value in header.metadata.items():
        name = key.removeprefix(f"{architecture.name}.")
        if name == key or name in read:
            continue
        nothing = value in (0, False, "", []) and name != "attention.causal"
        if nothing or (name in OFF and value == OFF[name]) or _every_layer_off(value):
            continue
        shown = repr(value) if len(repr(value)) <= 80 else repr(value)[:77] + "..."
        raise ConvertError(f"{path}: {key} is {shown}: only plain {'Llama' if architecture.name == 'llama' else architecture.name} decoders can be converted; give a model without it")


def _every_layer_off(value: object) -> bool:
    return isinstance(value, list) and all(v in (0, False) for v in value)
