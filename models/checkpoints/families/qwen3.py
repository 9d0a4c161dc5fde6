"""Qwen3, dense: a Llama that norms each head of its queries and keys."""

from .family import WINDOWED, Family, Fields
from .qwen2 import windows


def fields(config: Fields) -> Fields:
    """A Llama's fields."""
    return config | {"mlp_bias": False, "backbone": {"qk_norm": "head"}}


QWEN3 = Family(
    "qwen3",
    understood=WINDOWED,
    defaults={"num_key_value_heads": 32, "head_dim": 128, "max_position_embeddings": 32768, "use_sliding_window": False, "max_window_layers": 28},
    fields=fields,
    windows=windows,
)
