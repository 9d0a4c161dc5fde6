"""Sampling settings and end tokens of a generation_config.json: one reading for what is converted and for what is loaded.

Knows the fields and what each may be; draws no token.
"""

from collections.abc import Callable, Mapping
from typing import Any

from .errors import PromptError
from .fields import MOST, is_whole

FIELDS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_NUMBERS: dict[str, tuple[Callable[[float], bool], str]] = {
    "temperature": (lambda x: x >= 0, "a number of at least 0 (0 takes the likeliest token)"),
    "top_p": (lambda x: 0 <= x <= 1, "a number from 0 to 1 (1 keeps all tokens)"),
    "min_p": (lambda x: 0 <= x <= 1, "a number from 0 to 1 (0 keeps all tokens)"),
    "repetition_penalty": (lambda x: 0.01 <= x <= 100, "a number from 0.01 to 100 (1 is off)"),
}
_COUNTS = {
    "top_k": "a whole number of at least 0 (0 keeps all tokens)",
    "repetition_window": "a whole number of at least 0 (0 is off)",
}


def check_setting(name: str, x: Any) -> None:
    """Raise PromptError, naming the setting, its value and what it may be, unless x can be it."""
    if name in _COUNTS:
        if not is_whole(x) or x < 0:
            raise PromptError(f"{name} {x!r} must be {_COUNTS[name]}")
        return
    ok, what = _NUMBERS[name]
    if isinstance(x, bool) or not isinstance(x, (int, float)) or not -MOST <= x <= MOST or not ok(x):
        raise PromptError(f"{name} {x!r} must be {what}")


def read_settings(d: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling settings that a generation_config.json gives, by name; what is missing or null is left out.

    `do_sample: false` written out is temperature 0; a top_k below 0 is off, a whole one may be written 50.0. Raises PromptError naming the field.
    """
    found = {name: d[name] for name in FIELDS if d.get(name) is not None}
    do_sample = d.get("do_sample")
    if do_sample is not None and not isinstance(do_sample, bool):
        raise PromptError(f"do_sample {do_sample!r} must be true or false")
    if do_sample is False:
        found["temperature"] = 0.0
    if "top_k" in found:
        found["top_k"] = _count(found["top_k"])
    for name, x in found.items():
        check_setting(name, x)
    return found


def _count(k: Any) -> Any:
    whole = int(k) if isinstance(k, float) and k.is_integer() else k
    return max(0, whole) if is_whole(whole) else whole


def read_ends(d: Mapping[str, Any], vocab_size: int) -> frozenset[int]:
    """The ids of `eos_token_id`: one, a list, or nothing. Raises PromptError for what is no token id."""
    ends = d.get("eos_token_id")
    ids = ends if isinstance(ends, list) else [] if ends is None else [ends]
    for i in ids:
        if not is_whole(i) or not 0 <= i < vocab_size:
            raise PromptError(f"eos_token_id {i!r} must be a token id from 0 to {vocab_size - 1}")
    return frozenset(ids)
