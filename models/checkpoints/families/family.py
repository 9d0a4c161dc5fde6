"""What a family of decoders is to the conversion: fields it understands, what its classes take for missing ones, and two translations.

Knows config fields and Hugging Face tensor names; opens no file. To add a family: a file beside this one, a line in registry.py, a row in the table of
tests/models/test_families.py (docs/models.md).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from ...fields import whole
from ...rope import LENGTH, NEW, OLD, RopeConfig, read_rope
from ..source import SourceTensor

Fields = dict[str, Any]
Tensors = dict[str, SourceTensor]
Rule = Callable[[Any], bool]
SWITCH = "use_sliding_window"


def anything(value: Any) -> bool:
    """The rule of a field that the family reads itself."""
    return True


def as_it_is(config: Fields) -> Fields:
    """The fields of a family that writes them as a Llama does."""
    return dict(config)


def unchanged(tensors: Tensors, config: Fields) -> Tensors:
    """The tensors of a family that has a Llama's."""
    return tensors


def unlimited(config: Fields) -> int | None:
    """The window of a family whose layers all see everything."""
    return None


@dataclass(frozen=True)
class Family:
    """A family of decoders.

    model_type: as config.json says it. understood: fields beyond a Llama's, with what each may say. defaults: what transformers takes for a
    missing field, where that is not what a Llama has. fields: its config.json -> a Llama's fields, with a `backbone` block for what differs at run time.
    fold: its tensors -> those that the fields call for. window: the most positions at which its attention windows hide nothing, None without any.
    `fields`, `fold` and `window` get the config with its defaults and raise ConfigError or ConvertError naming the field or the tensor.
    """

    model_type: str
    understood: Mapping[str, Rule] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    fields: Callable[[Fields], Fields] = as_it_is
    fold: Callable[[Tensors, Fields], Tensors] = unchanged
    window: Callable[[Fields], int | None] = unlimited

    def complete(self, config: Mapping[str, Any]) -> Fields:
        """`config` with the family's defaults for what is missing."""
        if SWITCH not in self.defaults:  # a class that does not have it leaves its windows on, whatever the file says
            config = {name: value for name, value in config.items() if name != SWITCH}
        missing = {name: value for name, value in self.defaults.items() if name not in config}
        ropes = [config.get(name) for name in (NEW, OLD)]
        if any(isinstance(block, Mapping) and block.get("rope_theta") is not None for block in ropes):
            missing.pop("rope_theta", None)
        return {**config, **missing}

    def llama(self, config: Fields, file: Path) -> tuple[Fields, tuple[str, ...]]:
        """A Llama's fields of a complete config, and what the user should know. Raises ConfigError naming the file, the field and its value."""
        try:
            fields = self.fields(config)
            rope = read_rope(fields)
            positions, notes = whole(fields, "max_position_embeddings", 2048), []
            limits = [("sliding_window", self.window(config))]
            if rope.rope_type == "longrope":
                limits.append((LENGTH, rope.original_max_position_embeddings))
            for name, most in limits:
                if most is not None and most < positions:
                    notes.append(f"positions are limited to {most} of {positions}: up to its {name} the model is computed exactly, beyond it is not")
                    positions = most
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from None
        if notes or rope.rope_type == "longrope":
            fields = settled(fields, rope)  # its original length may be the positions that there were
        return fields | {"max_position_embeddings": positions}, tuple(notes)


def settled(fields: Fields, rope: RopeConfig) -> Fields:
    """`fields` with these rotary settings in the one spelling, whatever they were read from."""
    out = {name: value for name, value in fields.items() if name not in ("rope_theta", OLD, LENGTH, "partial_rotary_factor")}
    return out | {NEW: {"rope_theta": rope.theta, **rope.to_dict()}}


def head_width(config: Fields) -> int:
    """e, the width of a head."""
    return whole(config, "head_dim", whole(config, "hidden_size") // whole(config, "num_attention_heads"))


def sliding_window(config: Fields) -> int | None:
    """The tokens that the narrowest layer sees, None where no layer is limited. A position sees itself and those before it, as many as that in all.

    layer_types says which layers are limited, if it is there; use_sliding_window switches all of them off.
    """
    kinds = config.get("layer_types")
    if kinds is not None:
        for kind in kinds if isinstance(kinds, list) else [kinds]:
            if kind not in ("full_attention", "sliding_attention"):
                raise ConfigError(f"layer_types {kind!r} must be full_attention or sliding_attention: lm2 cannot convert this model")
        if "sliding_attention" not in kinds:
            return None
    if config.get("sliding_window") is None or config.get("use_sliding_window", True) is False:
        return None
    return whole(config, "sliding_window")


def kinds_of_layers(config: Fields, every: int) -> list[str]:
    """layer_types, or, where it is missing, sliding attention in all layers but each `every`-th (0: in none)."""
    layers, kinds = whole(config, "num_hidden_layers"), config.get("layer_types")
    if kinds is None:
        return ["sliding_attention" if every and (i + 1) % every else "full_attention" for i in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise ConfigError(f"layer_types must be a list of {layers} names, one for each layer")
    return kinds


def ropes_of_layers(config: Fields, kinds: list[str], theta: float, local_theta: float) -> tuple[Fields, Fields]:
    """Rotary settings of a family that has them by kind of layer: fields for the full ones, and for the sliding ones a part of a `backbone` block,
    empty where both are alike. rope_parameters has a block for each kind; in older files rope_theta and rope_scaling are the full layers',
    rope_local_base_freq the others'. theta, local_theta: where a file says neither.
    """
    blocks = {}
    for kind, base in (("full_attention", theta), ("sliding_attention", local_theta)):
        given = config.get(NEW) or {}
        if not isinstance(given, Mapping) or not all(isinstance(v, Mapping) for v in given.values()):
            raise ConfigError(f"{NEW} {given!r} must have a block for full_attention and one for sliding_attention")
        for name in given:
            if name not in ("full_attention", "sliding_attention"):
                raise ConfigError(f"{NEW}.{name} must be full_attention or sliding_attention: lm2 cannot convert this model")
        older = config.get(OLD) if kind == "full_attention" else None
        if older and given.get(kind, {}).get("rope_type", "default") != "default":
            raise ConfigError(f"{NEW} and {OLD} are both given: keep the one that the model was trained with, remove the other")
        if older and older.get("type") not in (None, older.get("rope_type", "default")):
            raise ConfigError(f"{OLD}.type {older['type']!r} is left out by transformers where layers turn in two ways: write {OLD}.rope_type, or remove it")
        named = config.get("rope_theta" if kind == "full_attention" else "rope_local_base_freq")
        blocks[kind] = {"rope_theta": base if named is None else named, **(older or {}), **{k: v for k, v in given.get(kind, {}).items() if v is not None}}
    rest = {name: config[name] for name in (LENGTH, "max_position_embeddings") if name in config}
    full, local = (read_rope({NEW: blocks[kind], **rest}) for kind in ("full_attention", "sliding_attention"))
    sliding = [i for i, kind in enumerate(kinds) if kind == "sliding_attention"]
    fields = {name: value for name, value in config.items() if name not in ("rope_theta", OLD, LENGTH)} | {NEW: {"rope_theta": full.theta, **full.to_dict()}}
    if full == local or not sliding:
        return fields, {}
    return fields, {"local": sliding, "local_rope": {"rope_theta": local.theta, **local.to_dict()}}


def has_layers(value: Any) -> bool:
    """Whether a layer_types field can be read; what it names is checked in `sliding_window`."""
    return isinstance(value, list)


WINDOWED: Mapping[str, Rule] = {
    "sliding_window": anything,
    "layer_types": has_layers,
    "max_window_layers": anything,
    "use_sliding_window": lambda x: isinstance(x, bool),
}
