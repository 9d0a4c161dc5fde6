"""Gemma 3, text alone: norms before and after attention and MLP, and of each head of queries and keys; GELU; embeddings times d^1/2; most layers see a
window and turn otherwise than the rest.

Its norms multiply by 1 + their weight. Scores are divided by query_pre_attn_scalar^1/2, which the norm of the queries takes.
"""

from ...errors import ConfigError
from ...fields import positive, whole
from .family import (
    WINDOWED,
    Family,
    Fields,
    Tensors,
    Windows,
    anything,
    but_each,
    head_width,
    kinds_of_layers,
    ropes_of_layers,
    windows_by_kind,
)
from .folds import each, raised, renamed, scaled

NAMES = {
    "post_attention_layernorm": "self_attn.output_norm",
    "pre_feedforward_layernorm": "post_attention_layernorm",
    "post_feedforward_layernorm": "mlp.output_norm",
}


def kinds(config: Fields) -> list[str]:
    """What each layer sees: each sixth everything, if nothing else is said."""
    return kinds_of_layers(config, but_each(whole({"n": config.get("sliding_window_pattern") or config.get("_sliding_window_pattern")}, "n", 6)))


def fields(config: Fields) -> Fields:
    """A Llama's fields."""
    act = config.get("hidden_activation")
    if act != "gelu_pytorch_tanh":
        raise ConfigError(f"hidden_activation {act!r} must be 'gelu_pytorch_tanh': lm2 cannot convert this model")
    made, ropes = ropes_of_layers(config, kinds(config), 1000000.0, 10000.0)
    scale = whole(config, "hidden_size") ** 0.5
    made.pop("hidden_act", None)
    return made | {
        "mlp_bias": False,
        "backbone": {"qk_norm": "head", "norms": "both", "activation": "gelu_tanh", "embedding_scale": scale, **ropes},
    }


def fold(tensors: Tensors, config: Fields) -> Tensors:
    """Norms as a Llama has them, under the names of what they are the norms of; the scores' own divisor in that of the queries."""
    return fold_raised(each(tensors, r"model\.(layers\.\d+\..*)?[a-z_]*norm\.weight", lambda t: raised(t, 1.0)), config)


def fold_raised(tensors: Tensors, config: Fields) -> Tensors:
    """What `fold` does to tensors whose norms hold 1 + weight already."""
    by = (head_width(config) / positive(config, "query_pre_attn_scalar", 256)) ** 0.5
    return renamed(each(tensors, r"model\.layers\.\d+\.self_attn\.q_norm\.weight", lambda t: scaled(t, by)), NAMES)


def windows(config: Fields) -> Windows:
    """The sliding layers' window."""
    return windows_by_kind(config, kinds(config))


GEMMA3 = Family(
    "gemma3_text",
    understood={
        **WINDOWED,
        **dict.fromkeys(("sliding_window_pattern", "_sliding_window_pattern", "query_pre_attn_scalar", "hidden_activation", "rope_local_base_freq"), anything),
        "cache_implementation": lambda x: x == "hybrid",
    },
    defaults={
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 256,
        "tie_word_embeddings": True,
    },
    fields=fields,
    fold=fold,
    windows=windows,
)
