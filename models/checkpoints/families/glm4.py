"""GLM-4-0414: a GLM with norms after attention and MLP as well as before."""

from . import glm
from .family import Family, Fields, Tensors
from .folds import renamed

NAMES = {"post_self_attn_layernorm": "self_attn.output_norm", "post_mlp_layernorm": "mlp.output_norm"}


def fields(config: Fields) -> Fields:
    """A Llama's fields."""
    return glm.fields(config) | {"backbone": {"norms": "both"}}


def fold(tensors: Tensors, config: Fields) -> Tensors:
    """A GLM's, and the norms under the names of what they are the norms of."""
    return renamed(glm.fold(tensors, config), NAMES)


GLM4 = Family("glm4", defaults=glm.DEFAULTS, fields=fields, fold=fold)
