"""What a decoder does otherwise than a Llama: one description, read by every backend. Knows no family's name and no weights.

Plain Python. A field at its default is a Llama's and is not written: old folders and their fingerprints stay as they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from .errors import ConfigError
from .fields import choice, is_whole, positive
from .rope import NEW, RopeConfig, read_rope

QK_NORMS = ("none", "head", "whole")
NORMS = ("before", "after", "both")
ACTIVATIONS = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}  # by Hugging Face's names, which config.json has as hidden_act
WINDOW_MAX = (1 << 31) - 1  # positions are 32-bit numbers in kernels


@dataclass(frozen=True)
class BackboneConfig:
    """Where a decoder's layers differ from a Llama's.

    qk_norm: an RMSNorm of queries and keys before they turn: of each `head` with one weight (e,), or of all heads as a `whole` with weights (h e,)
    and (k e,). no_rope: layers whose queries and keys do not turn. local_rope: how those of the layers `local` turn, where not as the others' do.
    norms: where a layer's RMSNorms stand: `before` attention and MLP, `after` them (before the sum with the residual stream), or `both`.
    activation: of the MLP's gate: `silu`, or `gelu_tanh`, 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).
    embedding_scale: what embeddings are multiplied by where the residual stream begins; the head, if it is tied to them, is not.
    windows: the attention window w of every layer, in tokens, None where it has none: position i sees j with i - w < j <= i. Empty: no layer has one.
    """

    qk_norm: str = "none"
    no_rope: tuple[int, ...] = ()
    norms: str = "before"
    activation: str = "silu"
    embedding_scale: float = 1.0
    local: tuple[int, ...] = ()
    local_rope: RopeConfig | None = None
    windows: tuple[int | None, ...] = ()

    def window(self, layer: int) -> int | None:
        """How many positions a token sees in a layer, its own and those before it; None: all."""
        return self.windows[layer] if self.windows else None

    def turns(self, layer: int) -> int | None:
        """By which of the config's `ropes` a layer's queries and keys turn; None: by none."""
        return None if layer in self.no_rope else int(layer in self.local)

    def to_dict(self) -> dict[str, Any]:
        """The `backbone` block of config.json: what is not a Llama's."""
        defaults, out = BackboneConfig(), dict[str, Any]()
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, RopeConfig):
                out[field.name] = {"rope_theta": value.theta, **value.to_dict()}
            elif value != getattr(defaults, field.name):
                out[field.name] = list(value) if isinstance(value, tuple) else value
        return out

    def check(self, layers: int, head_dim: int, positions: int) -> None:
        """Raise ConfigError for layers that a model of `layers` does not have, or a rope that does not go with its heads."""
        for name in ("no_rope", "local"):
            chosen = getattr(self, name)
            if list(chosen) != sorted(set(chosen)) or not all(0 <= i < layers for i in chosen):
                raise ConfigError(f"backbone.{name} {list(chosen)} must be ascending layers from 0 to {layers - 1}")
        if self.windows and len(self.windows) != layers:
            raise ConfigError(f"backbone.windows has {len(self.windows)} entries: it must have {layers}, one for each layer, null for one without a window")
        if bool(self.local) != (self.local_rope is not None):
            raise ConfigError(f"backbone.local {list(self.local)} and backbone.local_rope must be given together")
        if self.local_rope is not None:
            self.local_rope.check(head_dim, positions)


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
    w, local = "backbone.", d.get("local_rope")
    try:
        rope = None if local is None else read_rope({NEW: local})
    except ConfigError as error:
        raise ConfigError(f"backbone.local_rope: {error}") from None
    return BackboneConfig(
        qk_norm=choice(d, "qk_norm", "none", QK_NORMS, w),
        no_rope=_layers(d, "no_rope"),
        norms=choice(d, "norms", "before", NORMS, w),
        activation=choice(d, "activation", "silu", tuple(ACTIVATIONS), w),
        embedding_scale=positive(d, "embedding_scale", 1.0, w),
        local=_layers(d, "local"),
        local_rope=rope,
        windows=_windows(d),
    )


def _layers(d: Mapping[str, Any], key: str) -> tuple[int, ...]:
    layers = d.get(key, ())
    if not isinstance(layers, (list, tuple)) or not all(is_whole(i) for i in layers):
        raise ConfigError(f"backbone.{key} {layers!r} must be a list of layer numbers")
    return tuple(layers)


def _windows(d: Mapping[str, Any]) -> tuple[int | None, ...]:
    windows = d.get("windows", ())
    if not isinstance(windows, (list, tuple)) or not all(w is None or (is_whole(w) and 1 <= w <= WINDOW_MAX) for w in windows):
        raise ConfigError(f"backbone.windows {windows!r} must be a list with a number of tokens from 1 to {WINDOW_MAX}, or null, for each layer")
    if windows and not any(windows):
        raise ConfigError(f"backbone.windows {windows!r} must have a window for one layer at least: leave it out")
    return tuple(windows)
