"""GLM: a Llama that turns half of each head, in pairs that lie side by side, with gate and up in one matrix and biases on q, k and v alone."""

from ...fields import truth, whole
from .family import Family, Fields, Tensors, head_width
from .folds import KEYS, QUERIES, biased, each, interleaved, reordered, split_rows
from .partial import in_pairs, turning

PART = 0.5
DEFAULTS = {"num_key_value_heads": 2, "head_dim": 128, "max_position_embeddings": 131072, "rms_norm_eps": 1.5625e-07, "attention_bias": True}


def fields(config: Fields) -> Fields:
    """A Llama's fields."""
    return in_pairs(config, PART) | {"mlp_bias": False}


def fold(tensors: Tensors, config: Fields) -> Tensors:
    """Gate and up apart, the dimensions that turn in the pairs of a Llama, and zeros for the bias that o lacks."""
    ffn, e, turned = whole(config, "intermediate_size"), head_width(config), turning(config, PART)
    tensors = split_rows(tensors, "mlp.gate_up_proj", {"mlp.gate_proj": ffn, "mlp.up_proj": ffn})
    order = interleaved(e, turned)
    tensors = each(tensors, f"{QUERIES}|{KEYS}", lambda t: reordered(t, order))
    return biased(tensors, ("q_proj",), ("o_proj",)) if truth(config, "attention_bias", True) else tensors


GLM = Family("glm", defaults=DEFAULTS, fields=fields, fold=fold)
