"""Gemma, the first: a Llama with GELU, embeddings times d^1/2, and norms that multiply by 1 + their weight. Its configs say gelu and mean the tanh formula."""

from ...errors import ConfigError
from ...fields import whole
from .family import Family, Fields, Tensors, anything
from .folds import each, raised


def fields(config: Fields) -> Fields:
    """A Llama's fields."""
    for name in ("hidden_act", "hidden_activation"):
        if config.get(name) not in (None, "gelu", "gelu_pytorch_tanh"):
            raise ConfigError(f"{name} {config[name]!r} must be 'gelu_pytorch_tanh': lm2 cannot convert this model")
    made = {name: value for name, value in config.items() if name != "hidden_act"}
    return made | {"mlp_bias": False, "backbone": {"activation": "gelu_tanh", "embedding_scale": whole(config, "hidden_size") ** 0.5}}


def fold(tensors: Tensors, config: Fields) -> Tensors:
    """Norms as a Llama has them."""
    return each(tensors, r"model\.(layers\.\d+\.)?[a-z_]*norm\.weight", lambda t: raised(t, 1.0))


GEMMA = Family(
    "gemma",
    understood={"hidden_activation": anything},
    defaults={"num_key_value_heads": 16, "head_dim": 256, "max_position_embeddings": 8192, "tie_word_embeddings": True},
    fields=fields,
    fold=fold,
)
