"""Granite 3: a Llama with four factors. All of them can be in its weights.

Embeddings are multiplied by m, what each half of a layer adds by r, logits divided by s, and scores are multiplied by a instead of e^-1/2. The stream
divided by r is the stream of a model that adds without a factor: its embeddings are m / r times as large and the epsilon of its norms 1 / r^2 times,
because a norm of x / r with that epsilon is the norm of x. So r leaves every matrix alone, which would have to be rounded otherwise. q is
multiplied by a e^1/2. The last norm takes 1 / s, and r / m more where the head is the embedding, so that a tied head stays tied.
"""

from ...fields import positive, truth, whole
from .family import Family, Fields, Tensors, anything, head_width
from .folds import QUERIES, each, scaled


def fields(config: Fields) -> Fields:
    """A Llama's fields."""
    return config | {"rms_norm_eps": positive(config, "rms_norm_eps", 1e-6) / positive(config, "residual_multiplier", 1.0) ** 2}


def fold(tensors: Tensors, config: Fields) -> Tensors:
    """The factors in embedding, q and the last norm."""
    m, r, s, a = (
        positive(config, name, 1.0) for name in ("embedding_multiplier", "residual_multiplier", "logits_scaling", "attention_multiplier")
    )
    tied = truth(config, "tie_word_embeddings", False)
    whole(config, "hidden_size")
    tensors = each(tensors, QUERIES, lambda t: scaled(t, a * head_width(config) ** 0.5))
    tensors = each(tensors, r"model\.embed_tokens\.weight" + (r"|lm_head\.weight" if tied else ""), lambda t: scaled(t, m / r))
    return each(tensors, r"model\.norm\.weight", lambda t: scaled(t, (r / m if tied else 1.0) / s))


GRANITE = Family(
    "granite",
    understood=dict.fromkeys(("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"), anything),
    fields=fields,
    fold=fold,
)
