"""The configuration of an LM2 model: Hugging Face Llama field names plus a `memory` block.

Plain Python: imports no ML library, reads no weights. Every other part of the project shares these two dataclasses.
Unknown keys are ignored, wrong values are refused by name (ConfigError).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .backbone import ACTIVATIONS, read_backbone
from .backbone import BackboneConfig as BackboneConfig
from .encoding import EncodingError, read_text
from .errors import ConfigError, ModelFileError
from .fields import choice, is_whole, positive, truth, whole
from .rope import RopeConfig as RopeConfig
from .rope import read_rope

BASELINE = "lm2-baseline"  # the model_type of what LM2 is compared with (baselines/)
CELLS = ("gated", "released")
INITS = ("zeros", "eye")
POOLS = ("chunk", "causal")
CONTENTS = ("both", "token")
KEYS = ("row", "pair")
OPENS = ("read", "both")
VALUES = ("row", "topics")
TOPIC_BACK, TOPIC_AROUND = 24, 10
# Of a config as it is written: what a memory was before there was a choice.
LEFT_OUT = (("content", "both"), ("window", None), ("keys", "row"), ("opens", "read"), ("values", "row"), ("topics", ()), ("topic_back", TOPIC_BACK), ("topic_around", TOPIC_AROUND))
DTYPES = ("float32", "bfloat16", "float16", "float64")
CONFIG_BYTES_MAX = 1 << 20
LAYERS_MAX = 1 << 14  # every layer is named, one by one, before a weight is looked for
SLOTS_MAX = 1 << 24


@dataclass(frozen=True)
class MemoryConfig:
    """The memory bank and its cell.

    cell: `gated` (each memory layer has its own bank, read as it stood at the chunk's start) or `released` (one bank through all layers).
    slots: rows N of a bank. chunk: positions T of a chunk; gated allows N = k * T, chunk c then writes rows (c mod k) * T onward.
    layers: indices of the layers that have a memory. heads, head_dim: of the read attention.
    init: what a never-written bank holds. output_projection, scale: optional parts of the gated cell.
    gate_pool (released only): `chunk` is the checkpoint's own function, `causal` its streaming form.
    trained: False while the memory's weights are only a starting point.
    window: tokens that a session keeps word for word unless it is told otherwise; None leaves it to the runtime.
    content (gated only): what a row is made of: `both` the token and what it read (equation 6), or the `token` alone.
    keys (gated only): what a row is found by: the `row` itself, or the `pair` of it and the one before it in the ring.
    opens (gated only): what opens the output gate: what was `read` (equation 4), or `both` that and the token.
    values (gated only): what is read of a row: made of the `row` itself, or of its row in the `topics` bank as well, which says what word there was.
    topics (gated only): layers below the first memory whose values say what is talked of (topics.py); memories then look by that as well. Empty: none.
    topic_back, topic_around: tokens that are what is talked of now, and rows to either side that are near one.
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
    window: int | None = None
    keys: str = "row"
    opens: str = "read"
    values: str = "row"
    topics: tuple[int, ...] = ()
    topic_back: int = TOPIC_BACK
    topic_around: int = TOPIC_AROUND

    @property
    def banks(self) -> int:
        """How many banks a session carries: one per memory layer and one for topics (gated), or one in all (released)."""
        return self.memories + bool(self.topics)

    @property
    def memories(self) -> int:
        """How many of the banks, the first ones, hold what memories read and write; the topics' bank after them is none of these."""
        return 1 if self.cell == "released" else len(self.layers)


@dataclass(frozen=True)
class LM2Config:
    """A Llama decoder, or one that differs from it as `backbone` says, with an LM2 memory. Field names are Hugging Face's; `rope`, `backbone` and
    `memory` are blocks."""

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
    backbone: BackboneConfig = field(default_factory=BackboneConfig)

    @property
    def ropes(self) -> tuple[RopeConfig, ...]:
        """The ways in which layers turn queries and keys, most often one: `backbone.turns` says which is whose."""
        return (self.rope,) if self.backbone.local_rope is None else (self.rope, self.backbone.local_rope)

    def bank_shape(self, batch: int = 1) -> tuple[int, int, int, int]:
        """Canonical shape of a memory state: (banks l, batch b, rows n, width d)."""
        return (self.memory.banks, batch, self.memory.slots, self.hidden_size)

    def to_dict(self) -> dict[str, Any]:
        """The content of config.json. Rope is written under both of Hugging Face's spellings, because readers differ in which they know."""
        d = asdict(self)
        memory, backbone = d.pop("memory"), self.backbone.to_dict()
        del d["rope"], d["backbone"]
        theta, rope = self.rope.theta, self.rope.to_dict()
        d |= {
            "model_type": "lm2",
            "architectures": ["LM2ForCausalLM"],
            "hidden_act": ACTIVATIONS[self.backbone.activation],
            "rope_theta": theta,
            "rope_scaling": None if rope["rope_type"] == "default" else rope,
            "rope_parameters": {"rope_theta": theta, **rope},
            "eos_token_id": list(self.eos_token_id),
            "memory": {k: v for k, v in memory.items() if (k, v) not in LEFT_OUT} | {"layers": list(self.memory.layers)},
        }
        if backbone:
            d["backbone"] = backbone
        if self.memory.topics:
            d["memory"]["topics"] = list(self.memory.topics)
        return d

    def function_dict(self) -> dict[str, Any]:
        """What decides the numbers the model computes, and nothing else: the config's share of the fingerprint."""
        d = self.to_dict()
        d["memory"] = {k: v for k, v in d["memory"].items() if k not in ("trained", "window")}
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
        if d.get("model_type") == BASELINE:
            kind = d["baseline"].get("kind") if isinstance(d.get("baseline"), Mapping) else None
            raise ConfigError(f"model_type {BASELINE!r} is a baseline ({kind}), which LM2 is compared with: only `lm2 eval --task babilong` opens it")
        if d.get("model_type", "lm2") != "lm2":
            raise ConfigError(f"model_type {d['model_type']!r} must be 'lm2': turn another model into one with `lm2 convert SRC DST`")
        if "memory" not in d:
            raise ConfigError("memory is missing: an lm2 config needs a memory block")
        return cls.from_llama(d, memory=memory_from_dict(d["memory"]))

    @classmethod
    def from_llama(cls, d: Mapping[str, Any], memory: MemoryConfig) -> "LM2Config":
        """Read Hugging Face Llama fields from `d` and attach `memory`. Raises ConfigError as `from_dict` does."""
        backbone = read_backbone(d.get("backbone"))
        known = ACTIVATIONS[backbone.activation]
        act = d.get("hidden_act", known)
        if act != known and (act, known) != ("swish", "silu"):
            raise ConfigError(f"hidden_act {act!r} must be {known!r}")
        hidden = whole(d, "hidden_size")
        heads = whole(d, "num_attention_heads")
        head_dim = whole(d, "head_dim", hidden // heads)
        eos = d.get("eos_token_id")
        eos_ids = () if eos is None else tuple(eos) if isinstance(eos, (list, tuple)) else (eos,)
        config = cls(
            vocab_size=whole(d, "vocab_size"),
            hidden_size=hidden,
            intermediate_size=whole(d, "intermediate_size"),
            num_hidden_layers=whole(d, "num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=whole(d, "num_key_value_heads", heads),
            head_dim=head_dim,
            memory=memory,
            max_position_embeddings=whole(d, "max_position_embeddings", 2048),
            rms_norm_eps=positive(d, "rms_norm_eps", 1e-6),
            rope=read_rope(d),
            tie_word_embeddings=truth(d, "tie_word_embeddings", False),
            attention_bias=truth(d, "attention_bias", False),
            mlp_bias=truth(d, "mlp_bias", False),
            bos_token_id=d.get("bos_token_id"),
            eos_token_id=eos_ids,
            dtype=str(d.get("dtype") or d.get("torch_dtype") or "float32"),
            name=_name(d.get("name", "")),
            backbone=backbone,
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
        self.rope.check(self.head_dim, self.max_position_embeddings)
        self.backbone.check(self.num_hidden_layers, self.head_dim, self.max_position_embeddings)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_attention_heads {self.num_attention_heads} must be a multiple of num_key_value_heads {self.num_key_value_heads}"
            )
        for name, ids in (("bos_token_id", (self.bos_token_id,)), ("eos_token_id", self.eos_token_id)):
            for i in ids:
                if i is not None and (not is_whole(i) or not 0 <= i < self.vocab_size):
                    raise ConfigError(f"{name} {i!r} must be a token id below vocab_size {self.vocab_size}")
        if m.chunk > self.max_position_embeddings:
            raise ConfigError(f"memory.chunk {m.chunk} must not exceed max_position_embeddings {self.max_position_embeddings}")
        if m.window is not None and m.window > self.max_position_embeddings:
            raise ConfigError(f"memory.window {m.window} must not exceed max_position_embeddings {self.max_position_embeddings}")
        for i in m.layers:
            if not 0 <= i < self.num_hidden_layers:
                raise ConfigError(f"memory.layers {i} must be a layer from 0 to {self.num_hidden_layers - 1}")
        if list(m.layers) != sorted(set(m.layers)):
            raise ConfigError(f"memory.layers {list(m.layers)} must be ascending and name each layer once")
        if m.cell == "released":
            if m.window not in (None, m.chunk):
                raise ConfigError(f"memory.window {m.window} must equal memory.chunk {m.chunk} (cell released cannot fold)")
            for name, value in (("content", m.content), ("keys", m.keys), ("opens", m.opens), ("values", m.values), ("topics", m.topics)):
                if (name, value) not in LEFT_OUT:
                    raise ConfigError(f"memory.{name} {value!r} is for cell gated: leave it out")
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
            first = min(m.layers, default=0)
            if list(m.topics) != sorted(set(m.topics)) or not all(0 <= i < first for i in m.topics):
                raise ConfigError(f"memory.topics {list(m.topics)} must be ascending layers below the first memory layer, {first}")
            if m.values == "topics" and not m.topics:
                raise ConfigError("memory.values 'topics' needs memory.topics: name their layers, or leave it out")
            if m.topics and m.init != "zeros":
                raise ConfigError(f"memory.init {m.init!r} must be zeros with memory.topics")
            if m.topics and 2 * m.topic_around + 1 > m.slots:
                raise ConfigError(f"memory.topic_around {m.topic_around} must be at most {(m.slots - 1) // 2}, so that no row of {m.slots} is near twice")
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
        text = read_text(file)
        value = json.loads(text)
        if "\\u" in text:  # such an escape can spell half of a surrogate pair, which is no text and cannot be written again
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except FileNotFoundError:
        raise ModelFileError(f"{file} does not exist: give a model folder made by `lm2 convert` or `lm2 pull`") from None
    except EncodingError as error:
        raise ModelFileError(f"{file} {error}: save it as UTF-8, or restore the file") from None
    except UnicodeEncodeError as error:
        raise ModelFileError(f"{file} has half of a surrogate pair ({error.object[error.start]!a}): it is no text; restore the file") from None
    except (ValueError, RecursionError) as error:  # not JSON, a number of thousands of digits
        raise ModelFileError(f"{file} is not valid JSON ({error}): restore the file or convert the model again") from None
    except OSError as error:
        raise ModelFileError(f"cannot read {file}: {error.strerror or error}") from None


def _name(x: Any) -> str:
    x = "" if x is None else x
    if not isinstance(x, str):
        raise ConfigError(f"name {x!r} must be text")
    return x


def _layers(d: Mapping[str, Any], key: str) -> tuple[int, ...]:
    layers = d.get(key, [])
    if not isinstance(layers, (list, tuple)) or not all(is_whole(i) for i in layers):
        raise ConfigError(f"memory.{key} {layers!r} must be a list of layer numbers")
    return tuple(layers)


def memory_from_dict(d: Any) -> MemoryConfig:
    """Read a `memory` block. Raises ConfigError naming the field, the value and what was expected."""
    if not isinstance(d, Mapping):
        raise ConfigError(f"memory {d!r} must be an object")
    w = "memory."
    slots = whole(d, "slots", None, w)
    return MemoryConfig(
        cell=choice(d, "cell", "gated", CELLS, w),
        slots=slots,
        chunk=whole(d, "chunk", slots, w),
        layers=_layers(d, "layers"),
        heads=whole(d, "heads", None, w),
        head_dim=whole(d, "head_dim", None, w),
        init=choice(d, "init", "zeros", INITS, w),
        output_projection=truth(d, "output_projection", False, w),
        scale=truth(d, "scale", False, w),
        gate_pool=choice(d, "gate_pool", "chunk", POOLS, w),
        trained=truth(d, "trained", False, w),
        content=choice(d, "content", "both", CONTENTS, w),
        window=None if d.get("window") is None else whole(d, "window", None, w),
        keys=choice(d, "keys", "row", KEYS, w),
        opens=choice(d, "opens", "read", OPENS, w),
        values=choice(d, "values", "row", VALUES, w),
        topics=_layers(d, "topics"),
        topic_back=whole(d, "topic_back", TOPIC_BACK, w),
        topic_around=whole(d, "topic_around", TOPIC_AROUND, w),
    )
