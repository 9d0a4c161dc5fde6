"""Mistral: a Llama whose tokens may see only the last `sliding_window` of themselves and those before, in every layer."""

from .family import WINDOWED, Family, windows_everywhere

MISTRAL = Family(
    "mistral",
    understood=WINDOWED,
    defaults={"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096},
    windows=windows_everywhere,
)
