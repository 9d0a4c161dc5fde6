"""SmolLM3: a Llama some of whose layers do not turn queries and keys. `no_rope_layers` has 1 for a layer that does."""

from ...errors import ConfigError
from ...fields import whole
from .family import WINDOWED, Family, Fields, Windows, anything, kinds_of_layers, slides, windows_by_kind


def still(config: Fields) -> list[int]:
    """The layers without rotary embedding: those the list says, or every `no_rope_layer_interval`-th."""
    layers, flags = whole(config, "num_hidden_layers"), config.get("no_rope_layers")
    if flags is None:
        every = whole(config, "no_rope_layer_interval", 4)
        return [i for i in range(layers) if (i + 1) % every == 0]
    if not isinstance(flags, list) or len(flags) != layers or not all(f in (0, 1) for f in flags):
        raise ConfigError(f"no_rope_layers {flags!r} must be a list of {layers} numbers, 1 for a layer whose queries and keys turn and 0 for one without")
    return [i for i, turns in enumerate(flags) if not turns]


def fields(config: Fields) -> Fields:
    """A Llama's fields."""
    return config | {"backbone": {"no_rope": still(config)}}


def windows(config: Fields) -> Windows:
    """Of the layers that do not turn, where windows are switched on and nothing else is said."""
    without = still(config)
    return windows_by_kind(config, kinds_of_layers(config, lambda i: slides(config) and i in without))


SMOLLM3 = Family(
    "smollm3",
    understood={**WINDOWED, "no_rope_layers": anything, "no_rope_layer_interval": anything},
    defaults={
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "rope_theta": 2000000.0,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
    },
    fields=fields,
    windows=windows,
)
