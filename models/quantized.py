"""The `quantization` block of a folder whose matrices are packed for MLX, and the tensors such a folder holds.

Knows names, shapes and numbers; packs nothing and imports no ML library. A packed matrix X is three tensors: X.weight U32 (out, in * bits / 32),
X.scales and X.biases (out, in / group), value = scale * q + bias (MLX's affine mode; the names are mlx-lm's). Where every bias is
-2^(bits - 1) scale, as in a GGUF's Q4_0 and Q8_0, the matrix is listed as symmetric and its biases are left out.
Sessions are bound to the model a folder was made from: its fingerprint is kept in the block.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import ConfigError

KEY = "quantization"
BITS = (4, 8)
GROUPS = (32, 64, 128)
# Matrices that may be rounded: everything linear in the backbone, and of a memory what only reads.
_BACKBONE = ("embed_tokens", "lm_head", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_MEMORY = ("q_proj", "k_proj", "k_before_proj", "v_proj", "v_topic_proj", "o_proj", "query_proj", "key_proj", "value_proj")


@dataclass(frozen=True)
class Quantization:
    """bits and group_size of packed matrices; `others` are matrices, by name without `.weight`, with a (bits, group_size) of their own.

    symmetric: matrices, by such names, whose biases follow from their scales. source: fingerprint of the model these weights were made from. method: `affine` (rounded from that model) or `repacked` (a GGUF's own
    numbers, none rounded).
    """

    bits: int
    group_size: int
    source: str
    method: str = "affine"
    others: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    symmetric: frozenset[str] = frozenset()

    def of(self, name: str) -> tuple[int, int]:
        """(bits, group_size) of the matrix `name` (without `.weight`)."""
        return self.others.get(name, (self.bits, self.group_size))

    def to_dict(self) -> dict[str, Any]:
        """The block of config.json."""
        d: dict[str, Any] = {
            "bits": self.bits,
            "group_size": self.group_size,
            "mode": "affine",
            "method": self.method,
            "source_fingerprint": self.source,
        }
        if self.symmetric:
            d["symmetric"] = sorted(self.symmetric)
        return d | {name: {"bits": b, "group_size": g} for name, (b, g) in self.others.items()}

    @classmethod
    def from_dict(cls, d: Any) -> "Quantization":
        """Read the block. Raises ConfigError naming the field, the value and what was expected."""
        if not isinstance(d, Mapping):
            raise ConfigError(f"{KEY} {d!r} must be an object")
        if d.get("mode", "affine") != "affine":
            raise ConfigError(f"{KEY}.mode {d['mode']!r} must be 'affine'")
        source = d.get("source_fingerprint")
        if not isinstance(source, str) or len(source) != 64 or set(source) - set("0123456789abcdef"):
            raise ConfigError(
                f"{KEY}.source_fingerprint {source!r} must be 64 hexadecimal digits: quantise the model again with `lm2 convert --mlx`"
            )
        symmetric = d.get("symmetric", [])
        if not isinstance(symmetric, list) or not all(isinstance(name, str) for name in symmetric):
            raise ConfigError(f"{KEY}.symmetric {symmetric!r} must be a list of matrix names")
        others = {name: _pair(block, f"{KEY}.{name}.") for name, block in d.items() if isinstance(block, Mapping)}
        return cls(*_pair(d, f"{KEY}."), source, str(d.get("method", "affine")), others, frozenset(symmetric))


def may_be_rounded(name: str) -> bool:
    """Whether tensor `name` is a matrix whose numbers may be rounded to be packed. Norms, biases, and a memory's gates and content may not."""
    parts = name.split(".")
    return parts[-1] == "weight" and len(parts) > 1 and parts[-2] in (_MEMORY if ".memory." in name else _BACKBONE)


def may_be_packed(name: str) -> bool:
    """Whether a folder may hold tensor `name` packed: what may be rounded, and a memory's content, whose packed numbers must be its own."""
    return may_be_rounded(name) or name.endswith(".memory.content.weight")


def packed_shapes(
    name: str, shape: tuple[int, ...], bits: int, group: int, symmetric: bool = False
) -> dict[str, tuple[str | None, tuple[int, ...]]]:
    """The tensors of a packed matrix: name -> (dtype, or None for any float; shape). `name` ends in `.weight`, `shape` is (out, in)."""
    base = name.removesuffix("weight")
    out, width = shape
    parts: dict[str, tuple[str | None, tuple[int, ...]]] = {name: ("U32", (out, width * bits // 32))}
    for part in ("scales",) if symmetric else ("scales", "biases"):
        parts[base + part] = (None, (out, width // group))
    return parts


def _pair(d: Mapping[str, Any], where: str) -> tuple[int, int]:
    bits, group = d.get("bits"), d.get("group_size")
    if type(bits) is not int or bits not in BITS:
        raise ConfigError(f"{where}bits {bits!r} must be one of {', '.join(map(str, BITS))}")
    if type(group) is not int or group not in GROUPS:
        raise ConfigError(f"{where}group_size {group!r} must be one of {', '.join(map(str, GROUPS))}")
    return bits, group
