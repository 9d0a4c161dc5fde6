"""Ernie 4.5, dense: a Llama whose pairs lie side by side in a head, with one switch for all biases."""

from ...fields import truth
from .family import Family, Fields, Tensors, head_width
from .folds import KEYS, QUERIES, each, interleaved, reordered


def fields(config: Fields) -> Fields:
    """A Llama's fields."""
    bias = truth(config, "use_bias", False)
    return config | {"attention_bias": bias, "mlp_bias": bias}


def fold(tensors: Tensors, config: Fields) -> Tensors:
    """The rows of q and k in a Llama's order."""
    order = interleaved(head_width(config))
    return each(tensors, f"{QUERIES}|{KEYS}", lambda t: reordered(t, order))


ERNIE4_5 = Family(
    "ernie4_5",
    understood={"use_bias": lambda x: isinstance(x, bool)},
    defaults={
        "num_key_value_heads": 2,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "use_bias": False,
        "head_dim": 128,
    },
    fields=fields,
    fold=fold,
)
