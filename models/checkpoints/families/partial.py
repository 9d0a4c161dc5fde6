"""Rotary embedding of a part of each head: how many dimensions turn, and what a config of such a model becomes.

Knows config fields. The dimensions that turn are the first ones; with those of each pair brought to i and i + e/2, the others are pairs that turn by
nothing (RopeConfig.turning_pairs).
"""

from collections.abc import Mapping
from typing import Any

from ...errors import ConfigError
from ...fields import is_positive
from ...rope import NEW, OLD, PAIRS, PARTIAL
from .family import Fields, head_width


def turning(config: Fields, default: float = 1.0) -> int:
    """How many dimensions of a head turn: the first int(e x partial_rotary_factor). Raises ConfigError for numbers that are odd or contradict each other."""
    said = [block[PARTIAL] for block in (config, config.get(NEW), config.get(OLD)) if isinstance(block, Mapping) and block.get(PARTIAL) is not None]
    for value in said:
        if not is_positive(value) or value > 1:
            raise ConfigError(f"{PARTIAL} {value!r} must be a number above 0 and at most 1")
        if value != said[0]:
            raise ConfigError(f"{PARTIAL} {said[0]!r} must equal {value!r}, which it is elsewhere in the file: remove the one that is wrong")
    width, part = head_width(config), said[0] if said else default
    dimensions = int(width * part)
    if dimensions < 2 or dimensions % 2 or width % 2:
        raise ConfigError(f"{PARTIAL} {part} turns {dimensions} of the {width} dimensions of a head: both must be even")
    return dimensions


def in_pairs(config: Fields, default: float = 1.0) -> Fields:
    """The config with the part that turns counted in pairs, and the rest of its rotary settings as they are."""
    out: dict[str, Any] = {name: value for name, value in config.items() if name != PARTIAL}
    blocks = {name: {k: v for k, v in config[name].items() if k != PARTIAL} for name in (NEW, OLD) if isinstance(config.get(name), Mapping) and config[name]}
    if turning(config, default) != head_width(config):
        blocks = {name: block | {PAIRS: turning(config, default) // 2} for name, block in (blocks or {NEW: {"rope_type": "default"}}).items()}
    return out | blocks
