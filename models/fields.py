"""Single fields of a configuration, read with the right kind or refused by name. Knows no configuration in particular."""

import math
import sys
from collections.abc import Mapping
from typing import Any

from .errors import ConfigError

MOST = int(sys.float_info.max)


def is_whole(x: Any) -> bool:
    """Whether x is a whole number, and no truth value."""
    return isinstance(x, int) and not isinstance(x, bool)


def is_positive(x: Any) -> bool:
    """Whether x is a number above 0 that a float can hold."""
    if isinstance(x, bool) or not isinstance(x, (int, float)) or x <= 0:
        return False
    return x <= MOST if isinstance(x, int) else math.isfinite(x)


def whole(d: Mapping[str, Any], key: str, default: int | None = None, where: str = "") -> int:
    """A whole number above 0; `default` for a missing or null field. Raises ConfigError naming `where` and `key`."""
    x = d.get(key)
    x = default if x is None else x
    if x is None:
        raise ConfigError(f"{where}{key} is missing: it must be a positive whole number")
    if not is_whole(x) or x < 1:
        raise ConfigError(f"{where}{key} {x!r} must be a positive whole number")
    return x


def positive(d: Mapping[str, Any], key: str, default: float, where: str = "") -> float:
    """A number above 0; `default` for a missing field. Raises ConfigError naming `where` and `key`."""
    x = d.get(key, default)
    if not is_positive(x):
        raise ConfigError(f"{where}{key} {x!r} must be a positive number")
    return float(x)


def truth(d: Mapping[str, Any], key: str, default: bool, where: str = "") -> bool:
    """true or false; `default` for a missing field. Raises ConfigError naming `where` and `key`."""
    x = d.get(key, default)
    if not isinstance(x, bool):
        raise ConfigError(f"{where}{key} {x!r} must be true or false")
    return x


def choice(d: Mapping[str, Any], key: str, default: str, allowed: tuple[str, ...], where: str = "") -> str:
    """One of `allowed`; `default` for a missing field. Raises ConfigError naming `where` and `key`."""
    x = d.get(key, default)
    if x not in allowed:
        raise ConfigError(f"{where}{key} {x!r} must be one of {', '.join(allowed)}")
    return x
