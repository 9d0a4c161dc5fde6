"""Qwen2 and Qwen2.5: a Llama with biases on q, k and v and none on o, whatever config.json says. A bias of zeros on o changes nothing."""

from .family import WINDOWED, Family, Fields, Tensors, sliding_window
from .folds import biased


def fields(config: Fields) -> Fields:
    """A Llama's fields."""
    return config | {"attention_bias": True, "mlp_bias": False}


def fold(tensors: Tensors, config: Fields) -> Tensors:
    """Zeros for the bias that o lacks."""
    return biased(tensors, ("q_proj",), ("o_proj",))


QWEN2 = Family(
    "qwen2",
    understood=WINDOWED,
    defaults={"num_key_value_heads": 32, "max_position_embeddings": 32768, "use_sliding_window": False},
    fields=fields,
    fold=fold,
    window=sliding_window,
)
