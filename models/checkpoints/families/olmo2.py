"""OLMo 2: a Llama that norms what attention and MLP give instead of what they are given, and its queries and keys as a whole."""

from .family import Family, Fields, Tensors
from .folds import renamed


def fields(config: Fields) -> Fields:
    """A Llama's fields."""
    return config | {"mlp_bias": False, "backbone": {"qk_norm": "whole", "norms": "after"}}


def fold(tensors: Tensors, config: Fields) -> Tensors:
    """The norms under the names of what they are the norms of."""
    return renamed(tensors, {"post_attention_layernorm": "self_attn.output_norm", "post_feedforward_layernorm": "mlp.output_norm"})


OLMO2 = Family("olmo2", defaults={"max_position_embeddings": 2048, "rms_norm_eps": 1e-5}, fields=fields, fold=fold)
