"""OLMo 3: an OLMo 2 most of whose layers see a window, and may turn otherwise than the rest."""

from .family import WINDOWED, Family, Fields, Windows, but_each, kinds_of_layers, ropes_of_layers, windows_by_kind
from .olmo2 import fold

EVERY = 4  # layer_types, where it is missing: each fourth layer sees everything


def fields(config: Fields) -> Fields:
    """A Llama's fields."""
    theta = config.get("rope_theta", 500000.0)
    made, ropes = ropes_of_layers(config, kinds_of_layers(config, but_each(EVERY)), theta, theta)
    return made | {"mlp_bias": False, "backbone": {"qk_norm": "whole", "norms": "after", **ropes}}


def windows(config: Fields) -> Windows:
    """The sliding layers' window."""
    return windows_by_kind(config, kinds_of_layers(config, but_each(EVERY)))


OLMO3 = Family(
    "olmo3",
    understood={**WINDOWED},
    defaults={"max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "sliding_window": 4096},
    fields=fields,
    fold=fold,
    windows=windows,
)
