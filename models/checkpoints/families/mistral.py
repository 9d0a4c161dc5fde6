"""Mistral: a Llama whose tokens may see only the last `sliding_window` others. Up to as many positions it is one."""

from .family import WINDOWED, Family, sliding_window

MISTRAL = Family(
    "mistral",
    understood=WINDOWED,
    defaults={"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096},
    window=sliding_window,
)
