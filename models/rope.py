"""Rotary position embedding: its settings, read from either of Hugging Face's two spellings, and its frequencies.

Plain Python. Two spellings are in use, `rope_parameters` and the older `rope_theta` with `rope_scaling`, and readers differ in which one they
prefer: a config that gives both must mean the same with both.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ConfigError
from .fields import choice, is_positive, positive, whole

ROPE_TYPES = ("default", "linear", "llama3")
NEW, OLD = "rope_parameters", "rope_scaling"
LENGTH, PARTIAL = "original_max_position_embeddings", "partial_rotary_factor"
# What each type computes with beside theta; `original_max_position_embeddings` outside llama3 is read by nothing.
USED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
ALWAYS = ("rope_theta", "rope_type", "type", LENGTH, PARTIAL)


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
    kind = choice({"rope_type": _same(kinds, "default")}, "rope_type", "default", ROPE_TYPES, where)
    for key, value in block.items():
        off = (key.endswith("factor") and value == 1) or (kind == "linear" and key in USED["llama3"])
        if off or key in ALWAYS or key in USED[kind]:
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
    if kind == "default":
        return RopeConfig(theta)
    for key in USED[kind]:
        if key not in block:
            raise ConfigError(f"{where}{key} is missing: {where}rope_type {kind!r} needs it")
    factor = positive(block, "factor", 1.0, where)
    if kind == "linear":
        return RopeConfig(theta, kind, factor)
    low, high = positive(block, "low_freq_factor", 1.0, where), positive(block, "high_freq_factor", 4.0, where)
    if high <= low:
        raise ConfigError(f"{where}high_freq_factor {high} must be above {where}low_freq_factor {low}")
    lengths = {where + LENGTH: block.get(LENGTH), LENGTH: d.get(LENGTH)}
    length = _same(lengths, d.get("max_position_embeddings"))
    return RopeConfig(theta, kind, factor, low, high, whole({LENGTH: length}, LENGTH, None, where))


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
