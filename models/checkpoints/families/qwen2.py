"""Qwen2 and Qwen2.5: a Llama with biases on q, k and v and none on o, whatever config.json says. A bias of zeros on o changes nothing."""

from typing import Any

from ...errors import ConfigError
from ...fields import is_whole
from .family import WINDOWED, Family, Fields, Tensors, Windows, kinds_of_layers, slides, windows_by_kind
from .folds import biased

OFF = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}  # what a config that says nothing of windows means


def fields(config: Fields) -> Fields:
    """A Llama's fields."""
    return config | {"attention_bias": True, "mlp_bias": False}


def fold(tensors: Tensors, config: Fields) -> Tensors:
    """Zeros for the bias that o lacks."""
    return biased(tensors, ("q_proj",), ("o_proj",))


def windows(config: Fields) -> Windows:
    """Of the layers from `max_window_layers` on, where they are switched on and nothing else is said."""
    said: Fields = OFF | config
    first: Any = said["max_window_layers"]
    if not is_whole(first) or first < 0:
        raise ConfigError(f"max_window_layers {first!r} must be a whole number, the first layer with a window")
    return windows_by_kind(said, kinds_of_layers(said, lambda i: slides(said) and i >= first))


QWEN2 = Family(
    "qwen2",
    understood=WINDOWED,
    defaults={"num_key_value_heads": 32, "max_position_embeddings": 32768, "use_sliding_window": False, "max_window_layers": 28},
    fields=fields,
    fold=fold,
    windows=windows,
)
