"""What a decoder does otherwise than a Llama: one description, read by every backend. Knows no family's name and no weights.

Plain Python. A field at its default is a Llama's and is not written: old folders and their fingerprints stay as they are.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from .errors import ConfigError
from .fields import choice, is_whole

QK_NORMS = ("none", "head", "whole")
NORMS = ("before", "after", "both")
ACTIVATIONS = ("silu", "gelu_tanh")


@dataclass(frozen=True)
class BackboneConfig:
    """Where a decoder's layers differ from a Llama's.

    qk_norm: an RMSNorm of queries and keys before they turn: of each `head` with one weight (e,), or of all heads as a `whole` with weights (h e,)
    and (k e,). no_rope: layers whose queries and keys do not turn.
    norms: where a layer's RMSNorms stand: `before` attention and MLP, `after` them (before the sum with the residual stream), or `both`.
    activation: of the MLP's gate: `silu`, or `gelu_tanh`, 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).
    """

    qk_norm: str = "none"
    no_rope: tuple[int, ...] = ()
    norms: str = "before"
    activation: str = "silu"

    def to_dict(self) -> dict[str, Any]:
        """The `backbone` block of config.json: what is not a Llama's."""
        defaults = BackboneConfig()
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items() if value != getattr(defaults, name)
        }

    def check(self, layers: int) -> None:
        """Raise ConfigError for layers that a model of `layers` does not have."""
        if list(self.no_rope) != sorted(set(self.no_rope)) or not all(0 <= i < layers for i in self.no_rope):
            raise ConfigError(f"backbone.no_rope {list(self.no_rope)} must be ascending layers from 0 to {layers - 1}")


def read_backbone(d: Any) -> BackboneConfig:
    """Read a `backbone` block, None for a Llama's. Raises ConfigError naming the field: what is not known may change what the model computes."""
    if d is None:
        return BackboneConfig()
    if not isinstance(d, Mapping):
        raise ConfigError(f"backbone {d!r} must be an object")
    known = [f.name for f in fields(BackboneConfig)]
    for name in d:
        if name not in known:
            raise ConfigError(f"backbone.{name} is not known: it must be one of {', '.join(known)}; use the version of lm2 that wrote it")
    layers = d.get("no_rope", ())
    if not isinstance(layers, (list, tuple)) or not all(is_whole(i) for i in layers):
        raise ConfigError(f"backbone.no_rope {layers!r} must be a list of layer numbers")
    w = "backbone."
    return BackboneConfig(
        choice(d, "qk_norm", "none", QK_NORMS, w), tuple(layers), choice(d, "norms", "before", NORMS, w), choice(d, "activation", "silu", ACTIVATIONS, w)
    )
