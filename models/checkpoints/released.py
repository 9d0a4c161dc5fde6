"""A checkpoint of the released LM2 code (`ckpt_iter_*.pth` and a config.json) as a source.

Knows that checkpoint's key names and loads tensors only (`weights_only`): nothing in it is ever run. Takes the
model's weights and nothing else: optimizer, RNG states and the bank the training run stood at are left behind.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..config import MemoryConfig
from ..errors import ConvertError
from .llama_fields import check_fields
from .source import Source, SourceTensor, read_object, rows_per_block

OWN_FIELDS = ".*mem.*|batch_size"
MODULE = "mem_attn.memory_module."
COPY = "mem_attn.self_attn."
MEMORY_NAMES = {
    **{f"{n}.{p}": f"{n}.{p}" for n in ("query_proj", "key_proj", "value_proj") for p in ("weight", "bias")},
    **{f"attention_mlp.0.{p}": f"mlp.{p}" for p in ("weight", "bias")},
    **{f"attended_memory_layernorm.{p}": f"norm1.{p}" for p in ("weight", "bias")},
    **{f"attended_memory_layernorm2.{p}": f"norm2.{p}" for p in ("weight", "bias")},
    "input_gate_projector.w": "token_gate.scale",
    **{f"input_gate_projector.linear.{p}": f"token_gate.{p}" for p in ("weight", "bias")},
    **{f"memory_gate_projector.linear.{p}": f"bank_gate.{p}" for p in ("weight", "bias")},
    "input_bias": "input_bias",
    "forget_bias": "forget_bias",
}
MUST_EQUAL = {f"attention_mlp.1.{p}": f"attention_mlp.0.{p}" for p in ("weight", "bias")}


def open_released(path: Path, config: Path | None, gate_pool: str) -> Source:
    """Open a released checkpoint; its config is `config` or the config.json beside it.

    Raises ConvertError: torch missing, not a checkpoint, code in it, a repeated weight that differs, an unknown key.
    """
    file = config or path.with_name("config.json")
    if not file.is_file():
        raise ConvertError(f"{file} does not exist: a released checkpoint holds no config; give it with --config FILE")
    fields = read_object(file)
    check_fields(fields, file, also=OWN_FIELDS)
    state = _load(path)
    tensors: dict[str, SourceTensor] = {}
    for key, value in state.items():
        name = _name(key, value, state, path)
        if name:
            tensors[name] = _source_tensor(path, name, value)
    llama = dict(fields) | {"model_type": "llama", "dtype": None, "torch_dtype": None}
    return Source(
        format="released",
        files=(path, file),
        config=file,
        llama=llama,
        tensors=tensors,
        memory=_memory(fields, file, gate_pool),
        notes=("a released checkpoint has no tokenizer: the model takes token ids only",),
    )


def _memory(fields: Mapping[str, Any], file: Path, gate_pool: str) -> MemoryConfig:
    def count(key: str) -> int:
        value = fields.get(key)
        if type(value) is not int or value < 1:
            raise ConvertError(
                f"{file}: {key} {value!r} must be a positive whole number: give the config.json the checkpoint was trained with"
            )
        return value

    slots, heads, layers = count("memory_slots"), count("num_mem_heads"), count("num_hidden_layers")
    if slots % heads:
        raise ConvertError(f"{file}: memory_slots {slots} must be a multiple of num_mem_heads {heads}")
    return MemoryConfig(
        cell="released",
        slots=slots,
        chunk=slots,
        layers=tuple(range(layers)),
        heads=heads,
        head_dim=slots // heads,
        init="eye",
        gate_pool=gate_pool,
        trained=True,
    )


def _load(path: Path) -> Mapping[str, Any]:
    import importlib.util

    if importlib.util.find_spec("torch") is None:
        raise ConvertError(f"{path} needs PyTorch to be read: pip install 'lm2[torch]'")
    import pickle

    import torch

    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0].split(". ")[0]
        raise ConvertError(f"{path} is refused: it holds more than tensors and plain values ({reason}); nothing in it was run") from None
    except OSError as error:
        raise ConvertError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception as error:  # torch raises RuntimeError, EOFError, KeyError and others for damaged files
        reason = " ".join(str(error).split())[:160]
        raise ConvertError(f"{path} is not a readable PyTorch checkpoint ({reason}): download it again") from None
    state = checkpoint.get("model_state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not state:
        raise ConvertError(f"{path} has no model_state_dict: it is not a checkpoint of the released LM2 code")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise ConvertError(f"{path}: model_state_dict entry {key!r} is a {type(value).__name__}, expected a tensor")
        if value.layout != torch.strided or value.device.type != "cpu":
            raise ConvertError(f"{path}: tensor {key} is {value.layout} on {value.device}, expected a plain tensor")
    return state


def _name(key: str, value: Any, state: Mapping[str, Any], path: Path) -> str | None:
    """This project's name of a checkpoint key; None for what is repeated (after checking that it is equal) or not
    taken."""
    if key == "memory_bank" or key.endswith("rotary_emb.inv_freq"):
        return None
    if COPY in key:
        _check_equal(key, key.replace(COPY, "self_attn."), state, path)
        return None
    if MODULE not in key:
        return key
    prefix, part = key.split(MODULE, 1)
    if part in MUST_EQUAL:
        _check_equal(key, f"{prefix}{MODULE}{MUST_EQUAL[part]}", state, path)
        return None
    if part not in MEMORY_NAMES:
        raise ConvertError(f"{path}: tensor {key} is not part of the released LM2 model: this variant cannot be converted")
    return f"{prefix}memory.{MEMORY_NAMES[part]}"


def _check_equal(key: str, other: str, state: Mapping[str, Any], path: Path) -> None:
    import torch

    if other not in state:
        raise ConvertError(f"{path}: tensor {key} has no {other} to repeat: this variant cannot be converted")
    a, b = state[key], state[other]
    if a.dtype != b.dtype or a.shape != b.shape or not torch.equal(a, b):
        raise ConvertError(f"{path}: tensor {key} differs from {other}: the released model shares them, this variant cannot be converted")


def _source_tensor(path: Path, name: str, value: Any) -> SourceTensor:
    import torch

    codes = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
    if value.dtype not in codes:
        raise ConvertError(f"{path}: tensor {name} has dtype {value.dtype}, expected a float type")
    return SourceTensor(name, codes[value.dtype], tuple(value.shape), partial(_blocks, value))


def _blocks(value: Any) -> Iterator[np.ndarray]:
    import torch

    data = value.detach()
    bits = data.view(torch.int16) if data.dtype == torch.bfloat16 else data
    array = bits.numpy()
    array = array.view(np.uint16) if data.dtype == torch.bfloat16 else array
    if not array.shape:
        yield array
        return
    step = rows_per_block(array.shape, array.itemsize)
    for start in range(0, array.shape[0], step):
        yield array[start : start + step]
