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
Windows = list[int | None]
FULL, SLIDING = "full_attention", "sliding_attention"
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


def unlimited(config: Fields) -> Windows:
    """The windows of a family whose layers all see everything."""
    return []


@dataclass(frozen=True)
class Family:
    """A family of decoders.

    model_type: as config.json says it. understood: fields beyond a Llama's, with what each may say. defaults: what transformers takes for a
    missing field, where that is not what a Llama has. fields: its config.json -> a Llama's fields, with a `backbone` block for what differs at run time.
    fold: its tensors -> those that the fields call for. windows: the attention window of each layer as the family's class in transformers means it, in
    tokens, None for a layer without; empty where no layer has one. `fields`, `fold` and `windows` get the config with its defaults and raise ConfigError or ConvertError naming the field or the tensor.
    """

    model_type: str
    understood: Mapping[str, Rule] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    fields: Callable[[Fields], Fields] = as_it_is
    fold: Callable[[Tensors, Fields], Tensors] = unchanged
    windows: Callable[[Fields], Windows] = unlimited

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
            most = rope.original_max_position_embeddings
            if rope.rope_type == "longrope" and most < positions:
                notes.append(f"positions are limited to {most} of {positions}: up to its {LENGTH} the model is computed exactly, beyond it is not")
                positions = most
            windows = [w if w is not None and w < positions else None for w in self.windows(config)]  # a wider one hides nothing
            narrow = [w for w in windows if w is not None]
            if narrow:
                fields = fields | {"backbone": {**fields.get("backbone", {}), "windows": windows}}
                sizes = " or ".join(map(str, sorted(set(narrow))))
                notes.append(f"{len(narrow)} of {len(windows)} layers see the last {sizes} tokens, as the model was made; it has {positions} positions")
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from None
        if rope.rope_type == "longrope":
            fields = settled(fields, rope)
        return fields | {"max_position_embeddings": positions}, tuple(notes)


def folded(fold: Callable[[Tensors, Fields], Tensors], tensors: Tensors, config: Fields, file: Path) -> Tensors:
    """What `fold` makes of tensors by a complete config. Raises ConfigError naming the file, the field and its value, or ConvertError."""
    try:
        return fold(tensors, config)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


def settled(fields: Fields, rope: RopeConfig) -> Fields:
    """`fields` with these rotary settings in the one spelling, whatever they were read from."""
    out = {name: value for name, value in fields.items() if name not in ("rope_theta", OLD, LENGTH, "partial_rotary_factor")}
    return out | {NEW: {"rope_theta": rope.theta, **rope.to_dict()}}


def head_width(config: Fields) -> int:
    """e, the width of a head."""
    return whole(config, "head_dim", whole(config, "hidden_size") // whole(config, "num_attention_heads"))


def slides(config: Fields) -> bool:
    """Whether the config has a window for the layers that slide."""
    return config.get("sliding_window") is not None and config.get("use_sliding_window", True) is not False


def windows_by_kind(config: Fields, kinds: list[str]) -> Windows:
    """`sliding_window` in the layers that slide. Raises ConfigError for layers that do without one."""
    if SLIDING in kinds and not slides(config):
        said = [f"{name} {config.get(name)!r}" for name in ("sliding_window", "use_sliding_window") if name == "sliding_window" or name in config]
        raise ConfigError(f"layer_types has {SLIDING}, and {', '.join(said)} says that no layer has a window: correct the one that is wrong")
    return [whole(config, "sliding_window") if kind == SLIDING else None for kind in kinds]


def windows_everywhere(config: Fields) -> Windows:
    """`sliding_window` in every layer, of a family whose class does not read which ones. Raises ConfigError for a config that says otherwise."""
    kinds = kinds_of_layers(config, lambda i: slides(config))
    if config.get("sliding_window") is not None and FULL in kinds:
        raise ConfigError(f"layer_types {FULL!r} does not go with sliding_window {config['sliding_window']!r}, which this family has in every layer: correct the one that is wrong")
    return windows_by_kind(config, kinds)


def kinds_of_layers(config: Fields, sliding: Callable[[int], bool]) -> list[str]:
    """layer_types, or, where it is missing, sliding attention in the layers that `sliding` says. Raises ConfigError for a kind that is neither."""
    layers, kinds = whole(config, "num_hidden_layers"), config.get("layer_types")
    if kinds is None:
        return [SLIDING if sliding(i) else FULL for i in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise ConfigError(f"layer_types must be a list of {layers} names, one for each layer")
    for kind in kinds:
        if kind not in (FULL, SLIDING):
            raise ConfigError(f"layer_types {kind!r} must be {FULL} or {SLIDING}: lm2 cannot convert this model")
    return kinds


def but_each(every: int) -> Callable[[int], bool]:
    """For `kinds_of_layers`: all layers but each `every`-th."""
    return lambda i: (i + 1) % every != 0


def ropes_of_layers(config: Fields, kinds: list[str], theta: float, local_theta: float) -> tuple[Fields, Fields]:
    """Rotary settings of a family that has them by kind of layer: fields for the full ones, and for the sliding ones a part of a `backbone` block,
    empty where both are alike. rope_parameters has a block for each kind; in older files rope_theta and rope_scaling are the full layers',
    rope_local_base_freq the others'. theta, local_theta: where a file says neither.
    """
    blocks = {}
    for kind, base in ((FULL, theta), (SLIDING, local_theta)):
        given = config.get(NEW) or {}
        if not isinstance(given, Mapping) or not all(isinstance(v, Mapping) for v in given.values()):
            raise ConfigError(f"{NEW} {given!r} must have a block for full_attention and one for sliding_attention")
        for name in given:
            if name not in (FULL, SLIDING):
                raise ConfigError(f"{NEW}.{name} must be full_attention or sliding_attention: lm2 cannot convert this model")
        older = config.get(OLD) if kind == FULL else None
        if older and given.get(kind, {}).get("rope_type", "default") != "default":
            raise ConfigError(f"{NEW} and {OLD} are both given: keep the one that the model was trained with, remove the other")
        if older and older.get("type") not in (None, older.get("rope_type", "default")):
            raise ConfigError(f"{OLD}.type {older['type']!r} is left out by transformers where layers turn in two ways: write {OLD}.rope_type, or remove it")
        named = config.get("rope_theta" if kind == FULL else "rope_local_base_freq")
        blocks[kind] = {"rope_theta": base if named is None else named, **(older or {}), **{k: v for k, v in given.get(kind, {}).items() if v is not None}}
    rest = {name: config[name] for name in (LENGTH, "max_position_embeddings") if name in config}
    full, local = (read_rope({NEW: blocks[kind], **rest}) for kind in (FULL, SLIDING))
    sliding = [i for i, kind in enumerate(kinds) if kind == SLIDING]
    fields = {name: value for name, value in config.items() if name not in ("rope_theta", OLD, LENGTH)} | {NEW: {"rope_theta": full.theta, **full.to_dict()}}
    if full == local or not sliding:
        return fields, {}
    return fields, {"local": sliding, "local_rope": {"rope_theta": local.theta, **local.to_dict()}}


def has_layers(value: Any) -> bool:
    """Whether a layer_types field can be read; what it names is checked in `kinds_of_layers`."""
    return isinstance(value, list)


WINDOWED: Mapping[str, Rule] = {
    "sliding_window": anything,
    "layer_types": has_layers,
    "max_window_layers": anything,
    "use_sliding_window": lambda x: isinstance(x, bool),
}
