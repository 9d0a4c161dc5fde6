"""Helium: a Llama whose pairs lie side by side in a head, and whose o never has a bias."""

from ...fields import truth
from .family import Family, Fields, Tensors, head_width
from .folds import KEYS, QUERIES, biased, each, interleaved, reordered


def fold(tensors: Tensors, config: Fields) -> Tensors:
    """The rows of q and k in a Llama's order, and zeros for the bias that o lacks."""
    order = interleaved(head_width(config))
    tensors = each(tensors, f"{QUERIES}|{KEYS}", lambda t: reordered(t, order))
    return biased(tensors, ("q_proj",), ("o_proj",)) if truth(config, "attention_bias", False) else tensors


HELIUM = Family(
    "helium",
    defaults={"num_key_value_heads": 20, "head_dim": 128, "max_position_embeddings": 4096, "rms_norm_eps": 1e-8, "rope_theta": 100000.0},
    fold=fold,
)
