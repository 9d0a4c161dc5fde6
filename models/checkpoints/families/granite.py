"""Granite 3: a Llama with four factors.

Embeddings are multiplied by m, what each half of a layer adds by r, logits divided by s, and scores are multiplied by a instead of e^-1/2. The stream
divided by r is the stream of a model that adds without a factor: its embeddings are m / r times as large and the epsilon of its norms 1 / r^2 times,
because a norm of x / r with that epsilon is the norm of x. So r leaves every matrix alone, which would have to be rounded otherwise, and a tied head
stays tied. m / r is the backbone's embedding_scale, 1 / s is in the last norm, a e^1/2 in q: 1 or a power of two in the models there are with heads of 64.
"""

from ...fields import positive
from .family import Family, Fields, Tensors, anything, head_width
from .folds import QUERIES, each, scaled

FACTORS = ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling")


def fields(config: Fields) -> Fields:
    """A Llama's fields."""
    m, r = positive(config, "embedding_multiplier", 1.0), positive(config, "residual_multiplier", 1.0)
    return config | {"rms_norm_eps": positive(config, "rms_norm_eps", 1e-6) / r**2, "backbone": {"embedding_scale": m / r}}


def fold(tensors: Tensors, config: Fields) -> Tensors:
    """The factors of scores and logits."""
    a, s = positive(config, "attention_multiplier", 1.0), positive(config, "logits_scaling", 1.0)
    tensors = each(tensors, QUERIES, lambda t: scaled(t, a * head_width(config) ** 0.5))
    return each(tensors, r"model\.norm\.weight", lambda t: scaled(t, 1.0 / s))


GRANITE = Family("granite", understood=dict.fromkeys(FACTORS, anything), fields=fields, fold=fold)
