"""A GGUF file of a Llama, or of another family that is known, as a source: names, shapes and dtypes are Hugging Face's, values come dequantised in row
blocks.

Knows llama.cpp's naming and its row order of q and k; knows nothing of memories. Dequantisation is the `gguf`
package's. Axes: h head, p half (2), r rotary pair (head_dim / 2), d columns.
"""

import math
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConvertError
from .families.family import folded
from .families.registry import FAMILIES
from .gguf_families import ARCHITECTURES, Architecture
from .gguf_header import GGUFHeader, GGUFTensor, block_sizes, get, read_gguf
from .gguf_keys import check_keys
from .gguf_rope import FREQUENCIES, LONG, SHORT, rope_fields
from .gguf_special import chat_template, end_of_turn_ids
from .gguf_tokenizer import tokenizer_json
from .license import said_in_gguf
from .source import Source, SourceTensor, rows_per_block

EXACT = {"F32": ("F32", "<f4"), "F16": ("F16", "<f2"), "BF16": ("BF16", "<u2"), "F64": ("F64", "<f8")}
TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
IN_BLOCK = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def open_gguf(path: Path) -> Source:
    """Open a GGUF file of an architecture that is known. Raises ConvertError or ConfigError naming the file, the key or tensor, and the
    remedy."""
    header = read_gguf(path)
    architecture = architecture_of(header, path)
    fields = _fields(header, path, architecture)
    family = FAMILIES[architecture.model_type]
    tensors: dict[str, SourceTensor] = {}
    kinds: dict[str, int] = {}
    for tensor in header.tensors.values():
        if tensor.name == FREQUENCIES or (tensor.name in (SHORT, LONG) and architecture.longrope):
            continue
        name = _name(tensor.name, path, architecture)
        heads = 0
        if ".self_attn.q_proj." in name:
            heads = fields["num_attention_heads"]
        elif ".self_attn.k_proj." in name:
            heads = fields["num_key_value_heads"]
        tensors[name] = _source_tensor(path, tensor, name, heads, fields["head_dim"], architecture.pairs_apart)
        kinds[tensor.kind] = kinds.get(tensor.kind, 0) + 1
    _check_supported(path, header.tensors)
    llama, notes = family.llama(fields, path)
    tensors = folded(architecture.fold or family.fold, tensors, fields, path)
    return Source(
        format="gguf",
        files=(path,),
        llama=llama,
        tensors=tensors,
        tokenizer=tokenizer_json(header, path),
        template=chat_template(header),
        notes=notes,
        detail={"gguf_types": kinds, "gguf_name": header.metadata.get("general.name"), **said_in_gguf(header.metadata)},
    )


def architecture_of(header: GGUFHeader, path: Path) -> Architecture:
    """The architecture a file says it is of. Raises ConvertError naming it and those that can be converted."""
    name = get(header, path, "general.architecture", lambda x: isinstance(x, str), "a name")
    if name not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise ConvertError(f"{path}: architecture {name!r} is not supported: lm2 converts GGUF files of architecture {known}; give one of these")
    return ARCHITECTURES[name]


def _fields(header: GGUFHeader, path: Path, architecture: Architecture) -> dict[str, Any]:
    """What config.json of the family's own checkpoint says, as far as it can be known here."""
    model = architecture.name
    if header.metadata.get("split.count", 1) not in (0, 1):
        raise ConvertError(f"{path} is one of {header.metadata['split.count']} parts: merge them first with `llama-gguf-split --merge`")
    check_keys(header, path, architecture)

    def count(key: str, default: int | None = None) -> int:
        return get(header, path, key, lambda x: type(x) is int and x > 0, "a positive whole number", default)

    hidden, heads, layers = (count(f"{model}.{key}") for key in ("embedding_length", "attention.head_count", "block_count"))
    head_dim = count(f"{model}.attention.key_length", hidden // heads)
    turning = count(f"{model}.rope.dimension_count", head_dim)
    values = count(f"{model}.attention.value_length", head_dim)
    for key, value, less in (("attention.value_length", values, False), ("rope.dimension_count", turning, architecture.part)):
        if value > head_dim or (value != head_dim and not less):
            raise ConvertError(f"{path}: {model}.{key} {value} must equal the head size {head_dim}: other variants cannot be converted")
    if "token_embd.weight" not in header.tensors:
        raise ConvertError(f"{path} has no tensor token_embd.weight: give the model's own GGUF, not an adapter or a projector")
    vocab = header.tensors["token_embd.weight"].shape[0]
    if (said := count(f"{model}.vocab_size", vocab)) != vocab:
        raise ConvertError(
            f"{path}: {model}.vocab_size {said} contradicts token_embd.weight with {vocab} rows: convert the model to GGUF again"
        )
    eps = get(
        header,
        path,
        f"{model}.attention.layer_norm_rms_epsilon",
        lambda x: isinstance(x, float) and 0 < x < 1,
        "a small positive number",
    )
    bos = header.metadata.get("tokenizer.ggml.bos_token_id")
    fields = {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": count(f"{model}.feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": count(f"{model}.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": count(f"{model}.context_length"),
        "rms_norm_eps": shortest(eps),
        "rope_parameters": rope_fields(header, path, turning, model, architecture.longrope),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "attention_bias": not header.tensors.keys().isdisjoint(("blk.0.attn_q.bias", "blk.0.attn_qkv.bias")),
        "attention_out_bias": "blk.0.attn_output.bias" in header.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in header.tensors,
        "bos_token_id": bos,
        "eos_token_id": end_of_turn_ids(header, path, vocab),
    }
    if architecture.part:
        part = turning / head_dim
        fields["partial_rotary_factor"] = part if int(head_dim * part) == turning else math.nextafter(part, 1.0)
    fields |= _said(header, path, architecture, layers)
    return fields | architecture.fields(fields)


def _said(header: GGUFHeader, path: Path, architecture: Architecture, layers: int) -> dict[str, Any]:
    """Fields that the architecture's own keys say."""
    model, fields = architecture.name, dict[str, Any]()
    numbers = dict(architecture.numbers)
    for key, name in architecture.layers.items():
        value = header.metadata.get(f"{model}.{key}", 0)
        if not isinstance(value, list):
            numbers[key] = name
            continue
        if len(value) != layers or not all(flag in (0, 1) for flag in value):
            raise ConvertError(
                f"{path}: {model}.{key} must be a number or a list of {layers} times true or false: convert the model to GGUF again"
            )
        fields["layer_types"] = ["sliding_attention" if flag else "full_attention" for flag in value]
    for key, name in numbers.items():
        value = header.metadata.get(f"{model}.{key}", 0)
        whole = name == "sliding_window_pattern" and f"{model}.{key}" in header.metadata
        good = isinstance(value, float | int) and not isinstance(value, bool) and 0 <= value < np.inf
        if not good or (whole and (type(value) is not int or value < 1)):
            what = "a positive whole number" if whole else "a positive number"
            raise ConvertError(f"{path}: {model}.{key} is {value!r}, expected {what}: convert the model to GGUF again")
        if value:
            fields[name] = shortest(value) if isinstance(value, float) else value
    return fields


def shortest(x: float) -> float:
    """The shortest decimal that names the same float32: 9.999999747378752e-06 was written as 1e-05."""
    return float(str(np.float32(x)))


def _name(name: str, path: Path, architecture: Architecture) -> str:
    parts = {**IN_BLOCK, **architecture.parts}
    stem, _, part = name.rpartition(".")
    if part in ("weight", "bias"):
        if stem in TOP and part == "weight":
            return f"{TOP[stem]}.weight"
        match = re.fullmatch(r"blk\.(\d{1,5})\.([a-z_]+)", stem)
        if match and match[2] in parts:
            return f"model.layers.{int(match[1])}.{parts[match[2]]}.{part}"
    plain = "Llama" if architecture.name == "llama" else architecture.name
    raise ConvertError(f"{path}: tensor {name} is not part of a plain {plain} decoder: this model cannot be converted")


def _source_tensor(path: Path, tensor: GGUFTensor, name: str, heads: int, head_dim: int, apart: bool) -> SourceTensor:
    if heads and tensor.shape[0] != heads * head_dim:
        raise ConvertError(
            f"{path}: tensor {tensor.name} has {tensor.shape[0]} rows, its {heads} heads of {head_dim} need {heads * head_dim}"
        )
    dtype = EXACT[tensor.kind][0] if tensor.kind in EXACT else "F32"
    return SourceTensor(name, dtype, tensor.shape, partial(_blocks, path, tensor, head_dim if heads and not apart else 0))


def _blocks(path: Path, tensor: GGUFTensor, head_dim: int) -> Iterator[np.ndarray]:
    """Row blocks of one tensor, dequantised; with `head_dim`, whole heads at a time with llama.cpp's row order undone.

    A vector comes in one block.
    """
    rows = tensor.shape[0]
    step = rows_per_block(tensor.shape, 4, head_dim or 1) if len(tensor.shape) > 1 else rows
    with open(path, "rb") as f:
        f.seek(tensor.begin)
        for start in range(0, rows, step):
            n = min(step, rows - start)
            nbytes = tensor.nbytes // rows * n if n < rows else tensor.nbytes
            raw = f.read(nbytes)
            if len(raw) != nbytes:
                raise ConvertError(f"{path}: tensor {tensor.name} is cut off while reading: download the file again")
            block = dequantise(raw, tensor.kind, (n, *tensor.shape[1:]))
            yield unpermute(block, n // head_dim) if head_dim else block


def dequantise(raw: bytes, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Bytes of ggml type `kind` as an array of `shape`: of its own float type, or float32 for quantised types."""
    if kind in EXACT:
        return np.frombuffer(raw, EXACT[kind][1]).reshape(shape)
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    data = np.frombuffer(raw, np.uint8).reshape(shape[0] if len(shape) > 1 else 1, -1)
    return dequantize(data, GGMLQuantizationType[kind]).astype(np.float32, copy=False).reshape(shape)


def unpermute(block: np.ndarray, heads: int) -> np.ndarray:
    """Rows of `heads` heads from llama.cpp's order (pairs side by side) to Hugging Face's (first halves, then second
    halves)."""
    tail = block.shape[1:]
    pairs = block.reshape(heads, -1, 2, *tail)  # h r p d
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(block.shape)  # h p r d


def _check_supported(path: Path, tensors: Mapping[str, GGUFTensor]) -> None:
    sizes = {label: (items, nbytes) for label, items, nbytes in block_sizes().values()}
    first: dict[str, GGUFTensor] = {}
    for tensor in tensors.values():
        if tensor.kind not in EXACT:
            first.setdefault(tensor.kind, tensor)
    for kind, tensor in first.items():
        try:
            items, nbytes = sizes[kind]
            dequantise(bytes(nbytes), kind, (1, items))
        except NotImplementedError:
            raise ConvertError(
                f"{path}: tensor {tensor.name} has type {kind}, which the gguf package cannot dequantise: use another quantisation"
            ) from None
