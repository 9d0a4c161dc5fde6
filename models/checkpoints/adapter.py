"""Memory adapters: the trained memory of a backbone, without the backbone. A folder of two files, `adapter.json` and `memory.safetensors`.

Knows the files and which backbone they are for; training made them, a conversion puts them in. A backbone is recognised by its shape and
by its norm weights, which every published form of a model (bfloat16, GGUF quantisations) carries unrounded.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..atomic import new_folder, write_file
from ..config import LM2Config, MemoryConfig, memory_from_dict, read_json
from ..errors import ConfigError, ConvertError, ModelFileError, TensorFileError
from ..layout import ModelFolder, layer_memory_shapes, tensor_shapes
from ..tensorfile import Header, TensorWriter, from_float32, read_header, read_tensor, to_float32
from .source import FLOATS, SourceTensor, stored_tensors, whole

RECORD, TENSORS = "adapter.json", "memory.safetensors"
FORMAT = 1
_SHAPE = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
)  # fmt: skip


@dataclass(frozen=True)
class Adapter:
    """An opened adapter. backbone: its name and `key`; memory: the memory block it was trained with; training: how, for people to read."""

    path: Path
    name: str
    key: str
    memory: MemoryConfig
    header: Header
    training: Mapping[str, Any]

    def tensors(self, config: LM2Config) -> dict[str, SourceTensor]:
        """Every memory tensor by its full name, in the adapter's own dtype."""
        return stored_tensors(self.path / TENSORS, self.header)


def backbone_key(config: LM2Config, norms: Callable[[str], np.ndarray]) -> str:
    """sha256 of a backbone's shape and norm weights. norms: float32 values of a norm by its tensor name."""
    shape, other = {k: getattr(config, k) for k in _SHAPE}, config.backbone.to_dict()
    digest = hashlib.sha256(json.dumps(shape | ({"backbone": other} if other else {}), sort_keys=True).encode())
    for name in tensor_shapes(config):
        if name.endswith("norm.weight") and ".memory." not in name:
            digest.update(norms(name).astype("<f4").tobytes())
    return digest.hexdigest()


def folder_key(folder: ModelFolder) -> str:
    """`backbone_key` of a model folder with plain weights."""
    with open(folder.weights, "rb") as f:

        def norms(name: str) -> np.ndarray:
            info = folder.header.tensors[name]
            return to_float32(read_tensor(f, info), info.dtype)

        return backbone_key(folder.config, norms)


def check_backbone(adapter: Adapter, config: LM2Config, tensors: Mapping[str, SourceTensor], where: Path) -> None:
    """Raise ConvertError, naming both, unless the adapter was trained on this backbone."""

    def norms(name: str) -> np.ndarray:
        if name not in tensors:
            raise ConvertError(f"{where} has no tensor {name}: a file is missing")
        return whole(tensors[name])

    have = backbone_key(config, norms)
    if have != adapter.key:
        raise ConvertError(
            f"{adapter.path} is a memory for {adapter.name} (backbone {adapter.key[:12]}), {where} is another (backbone {have[:12]}): "
            "give its own adapter, or leave --adapter out"
        )


def open_adapter(path: Path) -> Adapter:
    """Read and check an adapter folder without its tensors. Raises ConvertError or ConfigError naming the file and the remedy."""
    for file in (path / RECORD, path / TENSORS):
        if not file.is_file():
            raise ConvertError(f"{file} does not exist: give the adapter folder that `lm2 train --task chat` wrote")
    try:
        record = read_json(path / RECORD)
    except ModelFileError:
        raise ConvertError(f"{path / RECORD} is not valid JSON: get the adapter again") from None
    if not isinstance(record, Mapping) or record.get("format") != FORMAT:
        found = record.get("format") if isinstance(record, Mapping) else type(record).__name__
        raise ConvertError(f"{path / RECORD}: format {found!r} must be {FORMAT}: it is no adapter of this version of lm2")
    backbone = record.get("backbone")
    if not isinstance(backbone, Mapping) or not all(isinstance(backbone.get(k), str) for k in ("name", "key")):
        raise ConvertError(f"{path / RECORD}: backbone must have a name and a key: get the adapter again")
    try:
        memory = memory_from_dict(record.get("memory"))
        header = read_header(path / TENSORS)
    except ConfigError as error:
        raise ConfigError(f"{path / RECORD}: {error}") from None
    except TensorFileError as error:
        raise ConvertError(f"{error}: get the adapter again") from None
    training = record.get("training")
    return Adapter(path, backbone["name"], backbone["key"], memory, header, training if isinstance(training, Mapping) else {})


def check_shapes(adapter: Adapter, config: LM2Config) -> None:
    """Raise ConvertError unless the adapter's memory can be in this backbone and its tensors are those the memory block calls for."""
    try:
        config.check()
    except ConfigError as error:
        raise ConvertError(f"{adapter.path / RECORD}: {error}: get the adapter again") from None
    want = {f"model.layers.{i}.memory.{name}": shape for i in config.memory.layers for name, shape in layer_memory_shapes(config, i).items()}
    have = {name: info.shape for name, info in adapter.header.tensors.items()}
    for name in sorted(set(want) | set(have)):
        if want.get(name) != have.get(name):
            raise ConvertError(
                f"{adapter.path / TENSORS}: tensor {name} is {_shown(have.get(name))}, {RECORD} calls for {_shown(want.get(name))}: "
                "get the adapter again"
            )
    for name, info in adapter.header.tensors.items():
        if info.dtype not in FLOATS:
            raise ConvertError(
                f"{adapter.path / TENSORS}: tensor {name} has dtype {info.dtype}, expected one of {', '.join(FLOATS)}: get the adapter again"
            )


def save_adapter(
    path: Path, config: LM2Config, key: str, name: str, tensors: Mapping[str, np.ndarray], training: Mapping[str, Any], dtype: str = "F16"
) -> None:
    """Write an adapter folder, whole or not at all. tensors: every memory tensor, float32, by full name. Raises WriteError or ConvertError."""
    plan = [(n, "F32" if a.ndim < 2 else dtype, a.shape) for n, a in tensors.items()]
    record = {
        "format": FORMAT,
        "backbone": {"name": name, "key": key},
        "memory": config.to_dict()["memory"],
        "training": dict(training),
    }
    with new_folder(path) as folder:

        def fill(f: BinaryIO) -> None:
            writer = TensorWriter(f, plan, {"format": "pt"})
            for n, code, _ in plan:
                with np.errstate(over="ignore"):  # found out, and said, below
                    values = from_float32(tensors[n], code)
                if not np.isfinite(values.astype(np.float32) if code != "BF16" else tensors[n]).all():
                    raise ConvertError(f"tensor {n} has values that {code} cannot hold: save the adapter in F32")
                writer.write(n, [values])
            writer.finish()

        write_file(folder / TENSORS, fill)
        body = (json.dumps(record, indent=2) + "\n").encode()
        write_file(folder / RECORD, lambda f: f.write(body))


def _shown(shape: tuple[int, ...] | None) -> str:
    return "not there" if shape is None else str(list(shape))
