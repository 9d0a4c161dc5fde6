"""What a baseline is: its kind, its segments and memory tokens, and the Llama inside. Knows fields; computes nothing.

A baseline's config.json has the model_type `lm2-baseline`, which nothing but `lm2 eval` and training reads.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config import BASELINE, LM2Config, MemoryConfig, read_json
from ..errors import ConfigError, ModelFileError
from ..fields import choice, whole
from ..layout import CONFIG, tensor_shapes

KINDS = ("rmt", "none")
TOKENS, SEGMENT, WINDOW = 16, 128, 512  # of lm2-babi's baselines
TENSOR = "memory_tokens"


@dataclass(frozen=True)
class BaselineConfig:
    """kind: `rmt` (Bulatov et al., arXiv 2207.06881) or `none`. tokens: memory tokens, 0 for none. segment: tokens of text in a segment; for none, of the
    window before a question. llama: the decoder, without memory layers; its `memory.chunk` is the longest message, as LM2 reads it."""

    kind: str
    tokens: int
    segment: int
    llama: LM2Config

    def check(self) -> None:
        """Raise ConfigError for fields that contradict one another."""
        if (self.kind == "none") != (self.tokens == 0):
            raise ConfigError(f"baseline.tokens {self.tokens} must be 0 for kind none, and only there")
        if self.segment < self.llama.memory.chunk:
            raise ConfigError(f"baseline.segment {self.segment} must be at least a message, {self.llama.memory.chunk}")
        if self.positions > self.llama.max_position_embeddings:
            raise ConfigError(f"max_position_embeddings {self.llama.max_position_embeddings} must be at least {self.positions}: segment, memory tokens and question")

    @property
    def positions(self) -> int:
        """Positions of a segment: the memory read, the text, and the memory written or a question with its answer."""
        return self.tokens + self.segment + max(self.tokens, self.llama.memory.chunk)

    @property
    def words(self) -> str:
        """The kind and its sizes, for people."""
        if self.kind == "none":
            return f"a Llama without memory; its window has {self.segment} tokens before a question"
        return f"RMT: {self.tokens} memory tokens carried over segments of {self.segment} tokens"

    def to_dict(self) -> dict[str, Any]:
        """The content of config.json."""
        d = self.llama.to_dict()
        del d["memory"]
        own = {"kind": self.kind, "tokens": self.tokens, "segment": self.segment, "chunk": self.llama.memory.chunk}
        return d | {"model_type": BASELINE, "architectures": ["LM2BaselineForCausalLM"], "baseline": own}


def baseline_config(kind: str, beside: LM2Config, tokens: int = TOKENS, segment: int | None = None) -> BaselineConfig:
    """A baseline as deep and wide as the LM2 `beside`, its MLP so much wider that it has as many parameters, to the nearest column.

    Raises ValueError for another kind.
    """
    if kind not in KINDS:
        raise ValueError(f"baseline {kind!r} must be one of {', '.join(KINDS)}")
    tokens = tokens if kind == "rmt" else 0
    segment = (SEGMENT if kind == "rmt" else WINDOW) if segment is None else segment
    plain = replace(beside, memory=_no_memory(beside.memory.chunk), name=f"{beside.name or 'lm2'} {kind}")
    column = 3 * plain.hidden_size * plain.num_hidden_layers
    missing = parameters(beside) - parameters(plain) - tokens * plain.hidden_size
    config = BaselineConfig(kind, tokens, segment, replace(plain, intermediate_size=plain.intermediate_size + max(0, round(missing / column))))
    config = replace(config, llama=replace(config.llama, max_position_embeddings=config.positions))
    config.check()
    return config


def parameters(config: LM2Config) -> int:
    """Numbers in a model's weights."""
    return sum(math.prod(shape) for shape in tensor_shapes(config).values())


def is_baseline(path: Path) -> bool:
    """Whether a folder's config.json says that it is a baseline. False where there is none that can be read: opening it says why."""
    try:
        d = read_json(path / CONFIG)
    except ModelFileError:
        return False
    return isinstance(d, dict) and d.get("model_type") == BASELINE


def read_baseline(path: Path) -> BaselineConfig:
    """The config of a baseline's folder. Raises ModelFileError or ConfigError naming the file."""
    file = path / CONFIG
    try:
        return from_dict(read_json(file))
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


def from_dict(d: Any) -> BaselineConfig:
    """Read the content of a baseline's config.json. Raises ConfigError naming the field, the value and what was expected."""
    if not isinstance(d, Mapping) or d.get("model_type") != BASELINE:
        raise ConfigError(f"this is no baseline: model_type must be {BASELINE!r}")
    own = d.get("baseline")
    if not isinstance(own, Mapping):
        raise ConfigError(f"baseline {own!r} must be an object")
    where = "baseline."
    kind = choice(own, "kind", "", KINDS, where)
    tokens = 0 if kind == "none" and own.get("tokens") == 0 else whole(own, "tokens", None, where)
    chunk = whole(own, "chunk", None, where)
    config = BaselineConfig(kind, tokens, whole(own, "segment", None, where), LM2Config.from_llama(d, memory=_no_memory(chunk)))
    config.check()
    return config


def _no_memory(chunk: int) -> MemoryConfig:
    return MemoryConfig("gated", chunk, chunk, (), 1, 1, output_projection=True)
