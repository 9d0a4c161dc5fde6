"""EXAONE 4: a Llama that norms what attention and MLP give, and each head of its queries and keys. Where some layers see a window, the others do not turn."""

from ...fields import whole
from .family import WINDOWED, Family, Fields, Windows, anything, but_each, kinds_of_layers, windows_by_kind
from .olmo2 import fold


def kinds(config: Fields) -> list[str]:
    """What each layer sees: the pattern is a number, each so many sees everything, and none without a window."""
    said = config.get("sliding_window") is not None and config.get("layer_types") is None
    return kinds_of_layers(config, but_each(whole(config, "sliding_window_pattern")) if said else lambda i: False)


def fields(config: Fields) -> Fields:
    """A Llama's fields."""
    still = [i for i, kind in enumerate(kinds(config)) if kind == "full_attention"] if config.get("sliding_window") is not None else []
    return config | {"attention_bias": False, "mlp_bias": False, "backbone": {"qk_norm": "head", "norms": "after", "no_rope": still}}


def windows(config: Fields) -> Windows:
    """The sliding layers' window."""
    return windows_by_kind(config, kinds(config))


EXAONE4 = Family(
    "exaone4",
    understood={**WINDOWED, "sliding_window_pattern": anything},
    defaults={"num_key_value_heads": 32, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "sliding_window": 4096, "sliding_window_pattern": 4},
    fields=fields,
    fold=fold,
    windows=windows,
)
