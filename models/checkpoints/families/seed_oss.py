"""Seed-OSS: a Llama whose o has a bias or none apart from q, k and v. Where one has it, zeros on the others change nothing."""

from ...fields import truth
from .family import Family, Fields, Tensors
from .folds import biased

INNER, OUTER = ("q_proj", "k_proj", "v_proj"), ("o_proj",)


def _biases(config: Fields) -> tuple[bool, bool]:
    return truth(config, "attention_bias", True), truth(config, "attention_out_bias", False)


def fields(config: Fields) -> Fields:
    """A Llama's fields."""
    return config | {"attention_bias": any(_biases(config))}


def fold(tensors: Tensors, config: Fields) -> Tensors:
    """Zeros for the biases that one side lacks."""
    inner, outer = _biases(config)
    if inner == outer:
        return tensors
    return biased(tensors, INNER, OUTER) if inner else biased(tensors, OUTER, INNER)


SEED_OSS = Family(
    "seed_oss",
    understood={"attention_out_bias": lambda x: isinstance(x, bool)},
    defaults={"num_key_value_heads": 8, "max_position_embeddings": 524288, "attention_bias": True, "attention_out_bias": False, "head_dim": 128},
    fields=fields,
    fold=fold,
)
