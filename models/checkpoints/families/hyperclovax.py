"""HyperCLOVA X: a Llama with Granite's factors, and norms after attention and MLP as well as before, if `use_post_norm` is on.

What each half of a layer adds is multiplied by r. With those norms r is in them; without them it goes where Granite's does. The logits' factor multiplies,
and scores without a factor of their own are divided by the root of the head's width.
"""

from ...fields import positive, truth
from . import granite
from .family import Family, Fields, Tensors, anything, head_width
from .folds import each, renamed, scaled

NAMES = {"post_norm1": "self_attn.output_norm", "post_norm2": "mlp.output_norm"}


def as_granite(config: Fields) -> Fields:
    """The factors as Granite says them, r without the norms after."""
    a = config.get("attention_multiplier")
    r = 1.0 if truth(config, "use_post_norm", True) else positive(config, "residual_multiplier", 1.0)
    return config | {
        "attention_multiplier": head_width(config) ** -0.5 if a is None else a,
        "logits_scaling": 1.0 / positive(config, "logits_scaling", 1.0),
        "residual_multiplier": r,
    }


def fields(config: Fields) -> Fields:
    """A Llama's fields."""
    made = granite.fields(as_granite(config))
    return made | {"backbone": made["backbone"] | {"norms": "both" if truth(config, "use_post_norm", True) else "before"}}


def fold(tensors: Tensors, config: Fields) -> Tensors:
    """Granite's, and r in the norms after attention and MLP."""
    tensors = granite.fold(tensors, as_granite(config))
    r = positive(config, "residual_multiplier", 1.0)
    return renamed(each(tensors, r"model\.layers\.\d+\.post_norm[12]\.weight", lambda t: scaled(t, r)), NAMES)


HYPERCLOVAX = Family(
    "hyperclovax",
    understood={**dict.fromkeys(granite.FACTORS, anything), "use_post_norm": lambda x: isinstance(x, bool)},
    defaults={"use_post_norm": True},
    fields=fields,
    fold=fold,
)
