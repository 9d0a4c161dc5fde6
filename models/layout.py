"""A model folder: which tensors a configuration calls for, what the folder's files are called, and its fingerprint.

Knows names, shapes and files; computes no model and imports no ML library. Hugging Face Llama names for the backbone,
`model.layers.{i}.memory.*` for the memory.
"""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .atomic import write_file
from .config import CONFIG_BYTES_MAX, LM2Config, MemoryConfig, read_config, read_json
from .errors import ConfigError, ModelFileError, TensorFileError, WriteError
from .exported import KEY as ONNX_KEY
from .exported import MODEL, Export, check_files
from .quantized import KEY, Quantization, may_be_packed, packed_shapes
from .tensorfile import Header, hash_tensor, read_header

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
TEMPLATE = "chat_template.jinja"
GENERATION = "generation_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TEXT_FILES = (TOKENIZER, TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json", TEMPLATE, GENERATION)
FINGERPRINT = "fingerprint.json"
# What is larger is not read, so it must not be written either.
FILE_BYTES_MAX = {CONFIG: CONFIG_BYTES_MAX, GENERATION: CONFIG_BYTES_MAX, TEMPLATE: 1 << 20, TOKENIZER: 64 << 20, TOKENIZER_CONFIG: 32 << 20}

# Memory tensors kept in float32 whatever the model's dtype: norms, gates, and what is written into the bank.
FLOAT32_PARTS = ("norm", "gate", "content", "scale", "_bias", "memory.mlp", "topics")


def memory_shapes(config: LM2Config) -> dict[str, tuple[int, ...]]:
    """Tensors of one layer's memory, by their name after `memory.`; d hidden, n slots, e = heads x head_dim (model.md, both cells)."""
    m, d, n = config.memory, config.hidden_size, config.memory.slots
    e = m.heads * m.head_dim
    if m.cell == "released":
        shapes: dict[str, tuple[int, ...]] = {}
        for name in ("query_proj", "key_proj", "value_proj", "mlp"):
            shapes |= {f"{name}.weight": (n, n), f"{name}.bias": (n,)}
        for name in ("norm1", "norm2"):
            shapes |= {f"{name}.weight": (n,), f"{name}.bias": (n,)}
        shapes |= {"token_gate.scale": (d,), "token_gate.weight": (2 * n, d), "token_gate.bias": (2 * n,)}
        shapes |= {"bank_gate.weight": (2 * n, n), "bank_gate.bias": (2 * n,), "input_bias": (), "forget_bias": ()}
        return shapes
    shapes = {"norm.weight": (d,), "bank_norm.weight": (d,)}
    shapes |= {f"{p}_proj.weight": (e, d) for p in "qkv"}
    if m.keys == "pair":
        shapes["k_before_proj.weight"] = (e, d)
    if m.values == "topics":
        shapes |= {"topic_norm.weight": (d,), "v_topic_proj.weight": (e, d)}
    if m.output_projection:
        shapes["o_proj.weight"] = (d, e)
    for gate in ("output_gate", "input_gate", "forget_gate"):
        shapes |= {f"{gate}.weight": (d, d), f"{gate}.bias": (d,)}
    shapes["content.weight"] = (d, d)
    if m.scale:
        shapes["scale"] = (d,)
    if m.opens == "both":
        shapes |= {"open_gate.weight": (1, d), "open_gate.bias": (1,)}
    return shapes


def topic_shapes(config: LM2Config) -> dict[str, tuple[int, ...]]:
    """Tensors of the topics, by their name after the first memory layer's `memory.`; none without `memory.topics`."""
    m, d = config.memory, config.hidden_size
    f = len(m.topics) * config.num_key_value_heads * config.head_dim
    if not m.topics:
        return {}
    shapes: dict[str, tuple[int, ...]] = {f"topics.{x}.{y}": (d, f) if y == "weight" else (d,) for x in ("write", "query") for y in ("weight", "bias")}
    return shapes | {"topics.keep": (d,), "topics.gain": (len(m.layers),)}


def layer_memory_shapes(config: LM2Config, layer: int) -> dict[str, tuple[int, ...]]:
    """Tensors of the memory of one layer, by their name after `memory.`: the first one's has the topics too."""
    return memory_shapes(config) | (topic_shapes(config) if layer == config.memory.layers[0] else {})


def tensor_shapes(config: LM2Config) -> dict[str, tuple[int, ...]]:
    """Every tensor of a model folder's weights and its shape, in file order (PyTorch's (out, in) for linear layers)."""
    c = config
    d, q, kv = c.hidden_size, c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    before, after = c.backbone.norms != "after", c.backbone.norms != "before"
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (c.vocab_size, d)}
    for i in range(c.num_hidden_layers):
        p = f"model.layers.{i}."
        if before:
            shapes[p + "input_layernorm.weight"] = (d,)
        for name, out, inp in (("q_proj", q, d), ("k_proj", kv, d), ("v_proj", kv, d), ("o_proj", d, q)):
            shapes[f"{p}self_attn.{name}.weight"] = (out, inp)
            if c.attention_bias:
                shapes[f"{p}self_attn.{name}.bias"] = (out,)
        if c.backbone.qk_norm != "none":
            widths = (c.head_dim, c.head_dim) if c.backbone.qk_norm == "head" else (q, kv)
            shapes |= {f"{p}self_attn.{name}.weight": (width,) for name, width in zip(("q_norm", "k_norm"), widths, strict=True)}
        if after:
            shapes[p + "self_attn.output_norm.weight"] = (d,)
        if i in c.memory.layers:
            shapes |= {f"{p}memory.{name}": shape for name, shape in layer_memory_shapes(c, i).items()}
        if before:
            shapes[p + "post_attention_layernorm.weight"] = (d,)
        for name, out, inp in (
            ("gate_proj", c.intermediate_size, d),
            ("up_proj", c.intermediate_size, d),
            ("down_proj", d, c.intermediate_size),
        ):
            shapes[f"{p}mlp.{name}.weight"] = (out, inp)
            if c.mlp_bias:
                shapes[f"{p}mlp.{name}.bias"] = (out,)
        if after:
            shapes[p + "mlp.output_norm.weight"] = (d,)
    shapes["model.norm.weight"] = (d,)
    if not c.tie_word_embeddings:
        shapes["lm_head.weight"] = (c.vocab_size, d)
    return shapes


def stays_float32(name: str) -> bool:
    """Whether a tensor is kept in float32 in a half-precision model: all norms, and the memory's gates, content and biases."""
    if ".memory." in name:
        return any(part in name for part in FLOAT32_PARTS)
    return "norm" in name


@dataclass(frozen=True)
class ModelFolder:
    """A checked model folder: its configuration, the header of its weights, and the fingerprint sessions are bound to.

    A folder packed for MLX has a `quantization`; its `fingerprint` is that of the model it was made from, `own_fingerprint` that of its bytes.
    A folder made by `lm2 export` has an `export` and no tensors of its own; its `fingerprint` is that of the model it was made from, too.
    """

    path: Path
    config: LM2Config
    header: Header
    fingerprint: str
    quantization: Quantization | None = None
    own_fingerprint: str = ""
    export: Export | None = None

    @property
    def weights(self) -> Path:
        return self.path / WEIGHTS

    def without_memory(self) -> "ModelFolder":
        """The backbone alone: the same files, a config without memory layers, and a name and fingerprint of its own. Cannot be had of an export."""
        m = self.config.memory
        memory = MemoryConfig("gated", m.slots, m.chunk, (), m.heads, m.head_dim, output_projection=True)
        config = replace(self.config, memory=memory, name=f"{self.config.name or self.path.name} without memory")
        return replace(self, config=config, fingerprint=bare_fingerprint(self.fingerprint))


def open_folder(path: Path, progress: Callable[[int], None] | None = None, quantized: bool = False, exported: bool = False) -> ModelFolder:
    """Read and check a model folder without loading weights. `quantized`: the caller can compute with weights packed for MLX;
    `exported`: with an ONNX model.

    Raises ModelFileError or ConfigError, naming the file: folder or file missing, weights cut off, a tensor missing, left over,
    or of another shape than the config calls for, packed weights where they cannot be used.
    """
    if not path.is_dir():
        what = "is a file, not a model folder" if path.exists() else "does not exist"
        raise ModelFileError(f"model {path} {what}: make one with `lm2 pull smollm2` or `lm2 convert SRC DST`")
    config = read_config(path)
    export = None if (path / WEIGHTS).exists() else read_export(path)
    if export is not None:
        if not exported:
            raise ModelFileError(f"{path} holds an ONNX model: open it with --backend onnx, or give the model it was exported from")
        check_files(path, export, progress)
        return ModelFolder(path, config, Header({}, {}, b"", export.bytes), export.source, export=export)
    try:
        header = read_header(path / WEIGHTS)
    except TensorFileError as error:
        raise ModelFileError(f"{error}: restore the file, or convert or pull the model again") from None
    quantization = read_quantization(path)
    if quantization is not None and not quantized:
        raise ModelFileError(
            f"{path} holds {quantization.bits}-bit weights packed for MLX: open it with --backend mlx, or give the model it was made from"
        )
    expected = _expected(tensor_shapes(config), quantization, header)
    for name, (dtype, shape) in expected.items():
        have = header.tensors.get(name)
        if have is None:
            raise ModelFileError(f"{path / WEIGHTS} has no tensor {name}, which {CONFIG} calls for: the two files are not of one model")
        if have.shape != shape:
            raise ModelFileError(
                f"{path / WEIGHTS}: tensor {name} is {list(have.shape)}, {CONFIG} calls for {list(shape)}: the two files are not of one model"
            )
        allowed = ("F32", "BF16", "F16", "F64") if dtype is None else (dtype,)
        if have.dtype not in allowed:
            raise ModelFileError(f"{path / WEIGHTS}: tensor {name} has dtype {have.dtype}, expected {' or '.join(allowed)}: convert the model again")
    for name in header.tensors:
        if name not in expected:
            raise ModelFileError(
                f"{path / WEIGHTS} has tensor {name}, which {CONFIG} does not call for: the two files are not of one model"
            )
    own = fingerprint(path, config, header, progress)
    return ModelFolder(path, config, header, own if quantization is None else quantization.source, quantization, own)


def read_quantization(path: Path) -> Quantization | None:
    """The `quantization` block of a folder's config.json, or None. Raises ConfigError or ModelFileError naming the file."""
    block = read_json(path / CONFIG).get(KEY)
    try:
        return None if block is None else Quantization.from_dict(block)
    except ConfigError as error:
        raise ConfigError(f"{path / CONFIG}: {error}") from None


def read_export(path: Path) -> Export | None:
    """The `onnx` block of a folder's config.json, or None. Raises ConfigError or ModelFileError naming the file."""
    block = read_json(path / CONFIG).get(ONNX_KEY)
    if block is None and (path / MODEL).exists():
        raise ModelFileError(f"{path / CONFIG} does not say how {MODEL} was exported: copy the whole folder, or export the model again")
    try:
        return None if block is None else Export.from_dict(block)
    except ConfigError as error:
        raise ConfigError(f"{path / CONFIG}: {error}") from None


def _expected(
    shapes: dict[str, tuple[int, ...]], quantization: Quantization | None, header: Header
) -> dict[str, tuple[str | None, tuple[int, ...]]]:
    """What the weights must hold: name -> (dtype, or None for any float; shape). Packed matrices are several tensors."""
    out: dict[str, tuple[str | None, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        base = name.removesuffix(".weight")
        if quantization is not None and may_be_packed(name) and f"{base}.scales" in header.tensors:
            out |= packed_shapes(name, shape, *quantization.of(base), base in quantization.symmetric)
        else:
            out[name] = (None, shape)
    return out


def combine_fingerprint(config: LM2Config, digests: dict[str, str], shapes: dict[str, tuple[str, tuple[int, ...]]]) -> str:
    """sha256 over the config's function and every tensor's name, dtype, shape and sha256 (state-file.md)."""
    body: dict[str, Any] = {
        "config": config.function_dict(),
        "tensors": [[n, shapes[n][0], list(shapes[n][1]), digests[n]] for n in sorted(digests)],
    }
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def bare_fingerprint(value: str) -> str:
    """The fingerprint of a model's backbone alone, from the model's."""
    return hashlib.sha256(f"{value} without memory".encode()).hexdigest()


def write_fingerprint(path: Path, value: str) -> None:
    """Keep a computed fingerprint beside the weights, with what it is valid for: the weights' size and time, and the config's bytes."""
    record = {"fingerprint": value, **_stamp(path)}
    body = json.dumps(record, indent=1).encode()
    write_file(path / FINGERPRINT, lambda f: f.write(body), follow=False)  # a link's file may be another folder's


def fingerprint(path: Path, config: LM2Config, header: Header, progress: Callable[[int], None] | None = None) -> str:
    """The folder's fingerprint: the kept one while weights and config are untouched, else computed from the bytes and kept if the folder is writable."""
    kept = path / FINGERPRINT
    if kept.is_file():
        try:
            record = read_json(kept)
            value = record.pop("fingerprint")
            if record == _stamp(path) and isinstance(value, str) and len(value) == 64:
                return value
        except (ModelFileError, AttributeError, KeyError):
            pass
    with open(path / WEIGHTS, "rb") as f:
        digests = {name: hash_tensor(f, info, progress) for name, info in header.tensors.items()}
    value = combine_fingerprint(config, digests, {n: (t.dtype, t.shape) for n, t in header.tensors.items()})
    with suppress(WriteError):  # a read-only model folder: computed again next time
        write_fingerprint(path, value)
    return value


def _stamp(path: Path) -> dict[str, Any]:
    stat = (path / WEIGHTS).stat()
    config = hashlib.sha256((path / CONFIG).read_bytes()).hexdigest()
    return {"weights_bytes": stat.st_size, "weights_mtime_ns": stat.st_mtime_ns, "config_sha256": config}
