"""OLMo 3: an OLMo 2 most of whose layers see a window, and may turn otherwise than the rest."""

from ...errors import ConfigError
from ...rope import NEW
from .family import SLIDING, WINDOWED, Family, Fields, Windows, but_each, kinds_of_layers, ropes_of_layers, windows_by_kind
from .olmo2 import fold

THETA = 500000.0
EVERY = 4  # layer_types, where it is missing: each fourth layer sees everything


def fields(config: Fields) -> Fields:
    """A Llama's fields."""
    theta = THETA if config.get("rope_theta") is None else config["rope_theta"]
    kinds, blocks = kinds_of_layers(config, but_each(EVERY)), config.get(NEW)
    said = isinstance(blocks, dict) and isinstance(blocks.get(SLIDING), dict) and "rope_theta" in blocks[SLIDING]
    if theta != THETA and not said and SLIDING in kinds:
        raise ConfigError(f"rope_theta {theta!r} is of all layers in transformers 4 and not of the sliding ones in 5: say it in {NEW}, for both kinds")
    made, ropes = ropes_of_layers(config, kinds, theta, theta)
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
