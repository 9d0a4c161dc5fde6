"""Rotary position embedding: its settings, read from either of Hugging Face's two spellings, and its frequencies.

Plain Python. Two spellings are in use, `rope_parameters` and the older `rope_theta` with `rope_scaling`, and readers differ in which one they
prefer: a config that gives both must mean the same with both.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ConfigError
from .fields import choice, is_positive, positive, truth, whole

# `dynamic` stretches sequences beyond max_position_embeddings alone, which no window of a model is: it is read as default.
ROPE_TYPES = ("default", "linear", "llama3", "yarn", "longrope", "dynamic")
NEW, OLD = "rope_parameters", "rope_scaling"
LENGTH, PARTIAL, PAIRS = "original_max_position_embeddings", "partial_rotary_factor", "turning_pairs"
# What each type computes with beside theta; the first few are needed, those in OPTIONAL have defaults.
USED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
    "longrope": ("short_factor",),
    "dynamic": ("factor",),
}
OPTIONAL: dict[str, tuple[str, ...]] = {
    "yarn": ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    "longrope": ("attention_factor", "factor", "long_factor"),
}
ALWAYS = ("rope_theta", "rope_type", "type", LENGTH, PARTIAL, PAIRS)
WRITTEN: dict[str, tuple[str, ...]] = {  # of a config as it is written, beside theta, type and pairs
    "default": (),
    "linear": ("factor", "low_freq_factor", "high_freq_factor", LENGTH),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", LENGTH),
    "yarn": ("factor", LENGTH, "attention_factor", "beta_fast", "beta_slow", "truncate"),
    "longrope": ("short_factor", LENGTH, "attention_factor"),
}


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding.

    linear needs `factor`; llama3 (Llama 3.1) `factor` and the three after it; yarn (arXiv 2309.00071) `factor`, the original length and `beta_*`;
    longrope (arXiv 2402.13753) the original length, up to which a model may go, and `short_factor`, one number for each pair that turns.
    attention_factor (yarn, longrope): what cosines and sines are multiplied by. turning_pairs: the pairs of a head that turn, the first ones;
    None: all. The frequencies are then those of a head of that width.
    """

    theta: float = 10000.0
    rope_type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    short_factor: tuple[float, ...] = ()
    turning_pairs: int | None = None

    def pairs(self, head_dim: int) -> int:
        """How many of the head_dim / 2 pairs turn."""
        return head_dim // 2 if self.turning_pairs is None else self.turning_pairs

    def inverse_frequencies(self, head_dim: int) -> list[float]:
        """Rotation per position of each pair of dimensions, head_dim / 2 numbers, in radians; 0 for pairs that do not turn.

        llama3: wavelengths above original/low_freq_factor are stretched by `factor`, those below original/high_freq_factor are kept,
        those between are blended linearly in original/wavelength (Llama 3.1 release, `rope_scaling.rope_type = llama3`).
        """
        count = self.pairs(head_dim)
        plain = [self.theta ** (-1.0 * i / count) for i in range(count)]
        still = [0.0] * (head_dim // 2 - count)
        if self.rope_type == "linear":
            return [f / self.factor for f in plain] + still
        if self.rope_type == "longrope":
            return [f / by for f, by in zip(plain, self.short_factor, strict=True)] + still
        if self.rope_type == "yarn":
            return [(keep + (1.0 - keep) / self.factor) * f for f, keep in zip(plain, self._kept(count), strict=True)] + still
        if self.rope_type != "llama3":
            return plain + still
        scaled = []
        for f in plain:
            turns = self.original_max_position_embeddings * f / (2.0 * math.pi)
            keep = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
            keep = min(1.0, max(0.0, keep))
            scaled.append(keep * f + (1.0 - keep) * f / self.factor)
        return scaled + still

    def amplitudes(self, head_dim: int) -> list[float]:
        """What the cosine and the sine of each pair are multiplied by, head_dim / 2 numbers: `attention_factor`, 1 for pairs that do not turn."""
        count = self.pairs(head_dim)
        return [self.attention_factor] * count + [1.0] * (head_dim // 2 - count)

    def _kept(self, count: int) -> list[float]:
        """How much of its own frequency each pair keeps: 1 for pairs that turn beta_fast times in the original length, 0 for beta_slow times, linear
        in the pair's number between (YaRN, section 3.2)."""

        def pair(turns: float) -> float:
            return count * math.log(self.original_max_position_embeddings / (turns * 2.0 * math.pi)) / math.log(self.theta)

        low, high = pair(self.beta_fast), pair(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * count - 1)
        span = high - low if high != low else 0.001
        return [1.0 - min(1.0, max(0.0, (i - low) / span)) for i in range(count)]

    def to_dict(self) -> dict[str, Any]:
        """The block of config.json without theta: the type and what it computes with."""
        block: dict[str, Any] = {"rope_type": self.rope_type} | {key: getattr(self, key) for key in WRITTEN[self.rope_type]}
        if self.turning_pairs is not None:
            block[PAIRS] = self.turning_pairs
        return {key: list(value) if isinstance(value, tuple) else value for key, value in block.items()}

    def check(self, head_dim: int, positions: int) -> None:
        """Raise ConfigError for settings that do not go with heads of that width, or with a model of that many positions."""
        if self.turning_pairs is not None and not 0 < self.turning_pairs <= head_dim // 2:
            raise ConfigError(f"{NEW}.{PAIRS} {self.turning_pairs} must be from 1 to {head_dim // 2}, half of head_dim")
        if self.rope_type != "longrope":
            return
        if len(self.short_factor) != self.pairs(head_dim):
            raise ConfigError(f"{NEW}.short_factor has {len(self.short_factor)} numbers, {self.pairs(head_dim)} pairs of a head turn")
        if positions > self.original_max_position_embeddings:
            raise ConfigError(
                f"max_position_embeddings {positions} must be at most {NEW}.{LENGTH} {self.original_max_position_embeddings} for longrope: "
                "longer sequences turn by other factors"
            )


def read_rope(d: Mapping[str, Any]) -> RopeConfig:
    """The rotary settings of Hugging Face config fields, with the meaning that transformers 5 gives them.

    Raises ConfigError, naming the field or both fields, for a type or a setting that is not computed here and for spellings that
    contradict each other.
    """
    found = {name: _block(d, name) for name in (NEW, OLD) if d.get(name)}
    if not found:
        return _read(d, "", {})
    ropes = {name: _read(d, f"{name}.", block) for name, block in found.items()}
    if len(ropes) == 2 and ropes[NEW] != ropes[OLD]:
        raise ConfigError(
            f"{NEW} {_shown(found[NEW])} contradicts {OLD} {_shown(found[OLD])}: keep the one that the model was trained with, remove the other"
        )
    return next(iter(ropes.values()))


def _block(d: Mapping[str, Any], name: str) -> dict[str, Any]:
    block = d[name]
    if not isinstance(block, Mapping):
        raise ConfigError(f"{name} {block!r} must be an object")
    return {key: value for key, value in block.items() if value is not None}


def _read(d: Mapping[str, Any], where: str, block: Mapping[str, Any]) -> RopeConfig:
    """The settings by one spelling; fields beside the block count where the block is silent."""
    kinds = {f"{where}{key}": block.get(key) for key in ("rope_type", "type")}
    named = "type" if block.get("rope_type") is None and "type" in block else "rope_type"
    kind = choice({named: _same(kinds, "default")}, named, "default", ROPE_TYPES, where)
    for key, value in block.items():
        off = (key.endswith("factor") and value == 1) or (kind == "linear" and key in USED["llama3"])
        if off or key in ALWAYS or key in USED[kind] or key in OPTIONAL.get(kind, ()):
            continue
        raise ConfigError(f"{where}{key} {value!r} is not known for {where}rope_type {kind!r}: lm2 does not compute it")
    for name, value in ((where + PARTIAL, block.get(PARTIAL)), (PARTIAL, d.get(PARTIAL))):
        if value is not None and value != 1:
            raise ConfigError(f"{name} {value!r} is not supported: it must be 1.0")
    thetas = {where + "rope_theta": block.get("rope_theta"), "rope_theta": d.get("rope_theta")}
    for name, value in thetas.items():
        if value is not None and not is_positive(value):
            raise ConfigError(f"{name} {value!r} must be a positive number")
    theta = float(_same(thetas, 10000.0))
    pairs = None if block.get(PAIRS) is None else whole(block, PAIRS, None, where)
    for key in USED[kind]:
        if key not in block:
            raise ConfigError(f"{where}{key} is missing: {where}rope_type {kind!r} needs it")
    if kind in ("default", "dynamic"):
        return RopeConfig(theta, turning_pairs=pairs)
    factor = positive(block, "factor", 1.0, where)
    if kind == "linear":
        return RopeConfig(theta, kind, factor, turning_pairs=pairs)
    lengths = {where + LENGTH: block.get(LENGTH), LENGTH: d.get(LENGTH)}
    length = whole({LENGTH: _same(lengths, d.get("max_position_embeddings"))}, LENGTH, None, where)
    if kind == "yarn":
        return _yarn(where, block, theta, factor, length, pairs)
    if kind == "longrope":
        return _longrope(d, where, block, theta, length, pairs)
    low, high = positive(block, "low_freq_factor", 1.0, where), positive(block, "high_freq_factor", 4.0, where)
    if high <= low:
        raise ConfigError(f"{where}high_freq_factor {high} must be above {where}low_freq_factor {low}")
    return RopeConfig(theta, kind, factor, low, high, length, turning_pairs=pairs)


def _yarn(where: str, block: Mapping[str, Any], theta: float, factor: float, length: int, pairs: int | None) -> RopeConfig:
    """attention_factor, where it is not given: 0.1 ln(factor) + 1, or the ratio of two such with `mscale` and `mscale_all_dim` before the logarithm."""
    if theta <= 1:
        raise ConfigError(f"{where}rope_theta {theta} must be above 1 for {where}rope_type 'yarn'")

    def size(by: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * by * math.log(factor) + 1.0

    given = size(1.0)
    if block.get("mscale") and block.get("mscale_all_dim"):
        given = size(positive(block, "mscale", 1.0, where)) / size(positive(block, "mscale_all_dim", 1.0, where))
    fast, slow = (positive(block, key, default, where) for key, default in (("beta_fast", 32.0), ("beta_slow", 1.0)))
    attention = positive(block, "attention_factor", given, where)
    return RopeConfig(
        theta, "yarn", factor, original_max_position_embeddings=length, attention_factor=attention, beta_fast=fast, beta_slow=slow,
        truncate=truth(block, "truncate", True, where), turning_pairs=pairs,
    )  # fmt: skip


def _longrope(d: Mapping[str, Any], where: str, block: Mapping[str, Any], theta: float, length: int, pairs: int | None) -> RopeConfig:
    """attention_factor, where it is not given: sqrt(1 + ln(factor) / ln(original length)), the factor being the ratio of the two lengths."""
    short = block["short_factor"]
    if not isinstance(short, (list, tuple)) or not short or not all(is_positive(x) for x in short):
        raise ConfigError(f"{where}short_factor {_brief(short)} must be a list of positive numbers")
    factor = positive(block, "factor", whole(d, "max_position_embeddings", length) / length, where)
    given = 1.0 if factor <= 1 or length < 2 else math.sqrt(1.0 + math.log(factor) / math.log(length))
    attention = positive(block, "attention_factor", given, where)
    return RopeConfig(
        theta, "longrope", original_max_position_embeddings=length, attention_factor=attention,
        short_factor=tuple(float(x) for x in short), turning_pairs=pairs,
    )  # fmt: skip


def _same(values: Mapping[str, Any], default: Any) -> Any:
    """The one value that is given under several names, or `default`. Raises ConfigError naming two that differ."""
    given = {name: value for name, value in values.items() if value is not None}
    first = next(iter(given), "")
    for name, value in given.items():
        if value != given[first]:
            raise ConfigError(f"{first} {given[first]!r} must equal {name} {value!r}: remove the one that is wrong")
    return next(iter(given.values()), default)


def _shown(block: Mapping[str, Any]) -> str:
    return str(dict(sorted(block.items())))


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
