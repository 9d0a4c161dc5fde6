"""The configuration of an LM2 model: Hugging Face Llama field names plus a `memory` block.

Plain Python: imports no ML library, reads no weights. Every other part of the project shares these two dataclasses.
Unknown keys are ignored, wrong values are refused by name (ConfigError).
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .errors import ConfigError, ModelFileError

CELLS = ("gated", "released")
INITS = ("zeros", "eye")
POOLS = ("chunk", "causal")
CONTENTS = ("both", "token")
DTYPES = ("float32", "bfloat16", "float16", "float64")
ROPE_TYPES = ("default", "linear", "llama3")
CONFIG_BYTES_MAX = 1 << 20
LAYERS_MAX = 1 << 14  # every layer is named, one by one, before a weight is looked for
SLOTS_MAX = 1 << 24


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding. `rope_type` llama3 needs the four factors of Llama 3.1; linear needs `factor`."""

    theta: float = 10000.0
    rope_type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def inverse_frequencies(self, head_dim: int) -> list[float]:
        """Rotation per position of each pair of dimensions, head_dim / 2 numbers, in radians.

        llama3: wavelengths above original/low_freq_factor are stretched by `factor`, those below original/high_freq_factor are kept,
        those between are blended linearly in original/wavelength (Llama 3.1 release, `rope_scaling.rope_type = llama3`).
        """
        plain = [self.theta ** (-2.0 * i / head_dim) for i in range(head_dim // 2)]
        if self.rope_type == "linear":
            return [f / self.factor for f in plain]
        if self.rope_type != "llama3":
            return plain
        scaled = []
        for f in plain:
            turns = self.original_max_position_embeddings * f / (2.0 * math.pi)
            keep = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
            keep = min(1.0, max(0.0, keep))
            scaled.append(keep * f + (1.0 - keep) * f / self.factor)
        return scaled


@dataclass(frozen=True)
class MemoryConfig:
    """The memory bank and its cell.

    cell: `gated` (each memory layer has its own bank, read as it stood at the chunk's start) or `released` (one bank through all layers).
    slots: rows N of a bank. chunk: positions T of a chunk; gated allows N = k * T, chunk c then writes rows (c mod k) * T onward.
    layers: indices of the layers that have a memory. heads, head_dim: of the read attention.
    init: what a never-written bank holds. output_projection, scale: optional parts of the gated cell.
    gate_pool (released only): `chunk` is the checkpoint's own function, `causal` its streaming form.
    trained: False while the memory's weights are only a starting point.
    content (gated only): what a row is made of: `both` the token and what it read (equation 6), or the `token` alone.
    """

    cell: str = "gated"
    slots: int = 512
    chunk: int = 512
    layers: tuple[int, ...] = ()
    heads: int = 8
    head_dim: int = 64
    init: str = "zeros"
    output_projection: bool = False
    scale: bool = False
    gate_pool: str = "chunk"
    trained: bool = False
    content: str = "both"

    @property
    def banks(self) -> int:
        """How many banks a session carries: one per memory layer (gated) or one in all (released)."""
        return 1 if self.cell == "released" else len(self.layers)


@dataclass(frozen=True)
class LM2Config:
    """A Llama decoder with an LM2 memory. Field names are Hugging Face's; `rope` and `memory` are blocks."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    memory: MemoryConfig
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope: RopeConfig = field(default_factory=RopeConfig)
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    bos_token_id: int | None = None
    eos_token_id: tuple[int, ...] = ()
    dtype: str = "float32"
    name: str = ""

    def bank_shape(self, batch: int = 1) -> tuple[int, int, int, int]:
        """Canonical shape of a memory state: (banks l, batch b, rows n, width d)."""
        return (self.memory.banks, batch, self.memory.slots, self.hidden_size)

    def to_dict(self) -> dict[str, Any]:
        """The content of config.json. Rope is written under both of Hugging Face's spellings, because readers differ in which they know."""
        d = asdict(self)
        rope, memory = d.pop("rope"), d.pop("memory")
        theta = rope.pop("theta")
        if rope["rope_type"] == "default":
            rope = {"rope_type": "default"}
        d |= {
            "model_type": "lm2",
            "architectures": ["LM2ForCausalLM"],
            "hidden_act": "silu",
            "rope_theta": theta,
            "rope_scaling": None if rope["rope_type"] == "default" else rope,
            "rope_parameters": {"rope_theta": theta, **rope},
            "eos_token_id": list(self.eos_token_id),
            "memory": {k: v for k, v in memory.items() if (k, v) != ("content", "both")} | {"layers": list(self.memory.layers)},
        }
        return d

    def function_dict(self) -> dict[str, Any]:
        """What decides the numbers the model computes, and nothing else: the config's share of the fingerprint."""
        d = self.to_dict()
        d["memory"] = {k: v for k, v in d["memory"].items() if k != "trained"}
        cosmetic = (
            "name",
            "dtype",
            "architectures",
            "bos_token_id",
            "eos_token_id",
            "max_position_embeddings",
            "rope_scaling",
            "rope_theta",
        )
        return {k: v for k, v in d.items() if k not in cosmetic}

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> "LM2Config":
        """Read the content of an lm2 config.json. Raises ConfigError naming the field, the value and what was expected."""
        if not isinstance(d, Mapping):
            raise ConfigError(f"the config must be a JSON object, not {type(d).__name__}")
        if d.get("model_type", "lm2") != "lm2":
            raise ConfigError(f"model_type {d['model_type']!r} must be 'lm2': turn another model into one with `lm2 convert SRC DST`")
        if "memory" not in d:
            raise ConfigError("memory is missing: an lm2 config needs a memory block")
        return cls.from_llama(d, memory=memory_from_dict(d["memory"]))

    @classmethod
    def from_llama(cls, d: Mapping[str, Any], memory: MemoryConfig) -> "LM2Config":
        """Read Hugging Face Llama fields from `d` and attach `memory`. Raises ConfigError as `from_dict` does."""
        act = d.get("hidden_act", "silu")
        if act not in ("silu", "swish"):
            raise ConfigError(f"hidden_act {act!r} must be 'silu'")
        hidden = _int(d, "hidden_size")
        heads = _int(d, "num_attention_heads")
        head_dim = _int(d, "head_dim", hidden // heads)
        eos = d.get("eos_token_id")
        eos_ids = () if eos is None else tuple(eos) if isinstance(eos, (list, tuple)) else (eos,)
        config = cls(
            vocab_size=_int(d, "vocab_size"),
            hidden_size=hidden,
            intermediate_size=_int(d, "intermediate_size"),
            num_hidden_layers=_int(d, "num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=_int(d, "num_key_value_heads", heads),
            head_dim=head_dim,
            memory=memory,
            max_position_embeddings=_int(d, "max_position_embeddings", 2048),
            rms_norm_eps=_float(d, "rms_norm_eps", 1e-6),
            rope=_rope(d),
            tie_word_embeddings=_bool(d, "tie_word_embeddings", False),
            attention_bias=_bool(d, "attention_bias", False),
            mlp_bias=_bool(d, "mlp_bias", False),
            bos_token_id=d.get("bos_token_id"),
            eos_token_id=eos_ids,
            dtype=str(d.get("dtype") or d.get("torch_dtype") or "float32"),
            name=str(d.get("name", "")),
        )
        config.check()
        return config

    def check(self) -> None:
        """Raise ConfigError for fields that contradict one another."""
        m = self.memory
        for name, n, most in (("num_hidden_layers", self.num_hidden_layers, LAYERS_MAX), ("memory.slots", m.slots, SLOTS_MAX)):
            if n > most:
                raise ConfigError(f"{name} {n} must be at most {most}")
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype {self.dtype!r} must be one of {', '.join(DTYPES)}")
        if self.head_dim % 2:
            raise ConfigError(f"head_dim {self.head_dim} must be even (rotary embedding turns pairs)")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_attention_heads {self.num_attention_heads} must be a multiple of num_key_value_heads {self.num_key_value_heads}"
            )
        for name, ids in (("bos_token_id", (self.bos_token_id,)), ("eos_token_id", self.eos_token_id)):
            for i in ids:
                if i is not None and (not _is_int(i) or not 0 <= i < self.vocab_size):
                    raise ConfigError(f"{name} {i!r} must be a token id below vocab_size {self.vocab_size}")
        if m.chunk > self.max_position_embeddings:
            raise ConfigError(f"memory.chunk {m.chunk} must not exceed max_position_embeddings {self.max_position_embeddings}")
        for i in m.layers:
            if not 0 <= i < self.num_hidden_layers:
                raise ConfigError(f"memory.layers {i} must be a layer from 0 to {self.num_hidden_layers - 1}")
        if list(m.layers) != sorted(set(m.layers)):
            raise ConfigError(f"memory.layers {list(m.layers)} must be ascending and name each layer once")
        if m.cell == "released":
            if m.content != "both":
                raise ConfigError(f"memory.content {m.content!r} is for cell gated: leave it out")
            if m.slots != self.hidden_size:
                raise ConfigError(f"memory.slots {m.slots} must equal hidden_size {self.hidden_size} (cell released needs T = N = D)")
            if m.chunk != m.slots:
                raise ConfigError(f"memory.chunk {m.chunk} must equal memory.slots {m.slots} (cell released needs T = N = D)")
            if m.layers != tuple(range(self.num_hidden_layers)):
                raise ConfigError(f"memory.layers {list(m.layers)} must name all {self.num_hidden_layers} layers (cell released)")
            if m.heads * m.head_dim != m.slots:
                raise ConfigError(
                    f"memory.heads {m.heads} x memory.head_dim {m.head_dim} must equal memory.slots {m.slots} (cell released)"
                )
        else:
            if m.slots % m.chunk:
                raise ConfigError(
                    f"memory.slots {m.slots} must equal memory.chunk {m.chunk} or a multiple of it (row t belongs to position t)"
                )
            if not m.output_projection and m.heads * m.head_dim != self.hidden_size:
                raise ConfigError(
                    f"memory.heads {m.heads} x memory.head_dim {m.head_dim} must equal hidden_size {self.hidden_size} without memory.output_projection"
                )


def read_config(path: Path) -> LM2Config:
    """Read `path`, or `path/config.json` for a folder. Raises ModelFileError (missing, not JSON) or ConfigError; both name the file."""
    file = path / "config.json" if path.is_dir() else path
    d = read_json(file)
    try:
        return LM2Config.from_dict(d)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


def read_json(file: Path, limit: int = CONFIG_BYTES_MAX) -> Any:
    """Parse a JSON file of at most `limit` bytes. Raises ModelFileError that names the file and the remedy."""
    try:
        size = file.stat().st_size
        if size > limit:
            raise ModelFileError(f"{file} has {size} bytes, more than the {limit} allowed: it is not a config of this kind")
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelFileError(f"{file} does not exist: give a model folder made by `lm2 convert` or `lm2 pull`") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelFileError(f"{file} is not valid JSON ({error}): restore the file or convert the model again") from None
    except OSError as error:
        raise ModelFileError(f"cannot read {file}: {error.strerror or error}") from None


def _is_int(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool)


def _int(d: Mapping[str, Any], key: str, default: int | None = None, where: str = "") -> int:
    x = d.get(key)
    x = default if x is None else x
    if x is None:
        raise ConfigError(f"{where}{key} is missing: it must be a positive whole number")
    if not _is_int(x) or x < 1:
        raise ConfigError(f"{where}{key} {x!r} must be a positive whole number")
    return x


def _float(d: Mapping[str, Any], key: str, default: float, where: str = "") -> float:
    x = d.get(key, default)
    if isinstance(x, bool) or not isinstance(x, (int, float)) or not math.isfinite(x) or x <= 0:
        raise ConfigError(f"{where}{key} {x!r} must be a positive number")
    return float(x)


def _bool(d: Mapping[str, Any], key: str, default: bool, where: str = "") -> bool:
    x = d.get(key, default)
    if not isinstance(x, bool):
        raise ConfigError(f"{where}{key} {x!r} must be true or false")
    return x


def _choice(d: Mapping[str, Any], key: str, default: str, allowed: tuple[str, ...], where: str = "") -> str:
    x = d.get(key, default)
    if x not in allowed:
        raise ConfigError(f"{where}{key} {x!r} must be one of {', '.join(allowed)}")
    return x


def _rope(d: Mapping[str, Any]) -> RopeConfig:
    new, old = d.get("rope_parameters") or {}, d.get("rope_scaling") or {}
    for name, block in (("rope_parameters", new), ("rope_scaling", old)):
        if not isinstance(block, Mapping):
            raise ConfigError(f"{name} {block!r} must be an object")
    thetas = [
        (n, float(t))
        for n, t in (("rope_parameters.rope_theta", new.get("rope_theta")), ("rope_theta", d.get("rope_theta")))
        if t is not None
    ]
    if len(thetas) == 2 and thetas[0][1] != thetas[1][1]:
        raise ConfigError(f"{thetas[0][0]} {thetas[0][1]} must equal {thetas[1][0]} {thetas[1][1]}")
    where = "rope_parameters." if new else "rope_scaling."
    block = dict(new or old)
    block.setdefault("rope_type", block.get("type", "default"))
    kind = _choice(block, "rope_type", "default", ROPE_TYPES, where)
    theta = _float({"rope_theta": thetas[0][1]} if thetas else {}, "rope_theta", 10000.0)
    if kind == "default":
        return RopeConfig(theta)
    factor = _float(block, "factor", 0.0, where)
    if kind == "linear":
        return RopeConfig(theta, kind, factor)
    low, high = _float(block, "low_freq_factor", 0.0, where), _float(block, "high_freq_factor", 0.0, where)
    if high <= low:
        raise ConfigError(f"{where}high_freq_factor {high} must be above {where}low_freq_factor {low}")
    return RopeConfig(theta, kind, factor, low, high, _int(block, "original_max_position_embeddings", None, where))


def memory_from_dict(d: Any) -> MemoryConfig:
    """Read a `memory` block. Raises ConfigError naming the field, the value and what was expected."""
    if not isinstance(d, Mapping):
        raise ConfigError(f"memory {d!r} must be an object")
    w = "memory."
    layers = d.get("layers", [])
    if not isinstance(layers, (list, tuple)) or not all(_is_int(i) for i in layers):
        raise ConfigError(f"memory.layers {layers!r} must be a list of layer numbers")
    slots = _int(d, "slots", None, w)
    return MemoryConfig(
        cell=_choice(d, "cell", "gated", CELLS, w),
        slots=slots,
        chunk=_int(d, "chunk", slots, w),
        layers=tuple(layers),
        heads=_int(d, "heads", None, w),
        head_dim=_int(d, "head_dim", None, w),
        init=_choice(d, "init", "zeros", INITS, w),
        output_projection=_bool(d, "output_projection", False, w),
        scale=_bool(d, "scale", False, w),
        gate_pool=_choice(d, "gate_pool", "chunk", POOLS, w),
        trained=_bool(d, "trained", False, w),
        content=_choice(d, "content", "both", CONTENTS, w),
    )
