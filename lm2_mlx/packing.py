"""Numbers packed as MLX packs them, and GGUF's blocks read as such numbers. NumPy only; knows rows of a matrix and no files.

A packed row is groups of `group` numbers, value = scale * q + bias with q of `bits` bits, the first in a word's lowest bits.
Axes: o rows, i columns, g groups or blocks of a row.
"""

from typing import NamedTuple

import numpy as np

# GGUF types whose blocks are exactly such groups of 32: bytes of a block, bits of q.
REPACKABLE = {"Q4_0": (18, 4), "Q4_1": (20, 4), "Q8_0": (34, 8)}
GGUF_GROUP = 32


class Packed(NamedTuple):
    """A packed matrix: weight uint32 (o, i * bits / 32), scales and biases (o, g) float16 or float32."""

    weight: np.ndarray
    scales: np.ndarray
    biases: np.ndarray
    bits: int
    group: int

    @property
    def scale_code(self) -> str:
        """The safetensors dtype of scales and biases."""
        return "F16" if self.scales.dtype == np.float16 else "F32"

    @property
    def symmetric(self) -> bool:
        """Whether the biases follow from the scales: the middle q stands for zero everywhere."""
        return np.array_equal(self.scales.astype(np.float32) * np.float32(-(2 ** (self.bits - 1))), self.biases.astype(np.float32))

    def rows(self, index: np.ndarray) -> "Packed":
        """The same with its rows picked or reordered: they are packed one by one."""
        return self._replace(weight=self.weight[index], scales=self.scales[index], biases=self.biases[index])

    def times(self, factor: float) -> "Packed":
        """The same multiplied by a power of two: no number is rounded. Scales and biases become float32 where float16 cannot hold them."""
        wide = [a.astype(np.float32) * np.float32(factor) for a in (self.scales, self.biases)]
        with np.errstate(over="ignore"):
            narrow = [a.astype(np.float16) for a in wide]
        exact = all(np.array_equal(a.astype(np.float32), b) for a, b in zip(narrow, wide, strict=True))
        scales, biases = narrow if exact else wide
        return self._replace(scales=scales, biases=biases)

    def values(self) -> np.ndarray:
        """float32 (o, i): one multiplication and one addition in float32 each, as MLX unpacks them."""
        q = unpack_bits(self.weight, self.bits).reshape(len(self.weight), -1, self.group)  # (o, g, group)
        scale, bias = (a.astype(np.float32)[..., None] for a in (self.scales, self.biases))
        return (q.astype(np.float32) * scale + bias).reshape(len(self.weight), -1)


def pack_bits(q: np.ndarray, bits: int) -> np.ndarray:
    """q (o, i) of values below 2^bits -> uint32 (o, i * bits / 32)."""
    per_word = 32 // bits
    lanes = q.reshape(q.shape[0], -1, per_word).astype(np.uint32)  # (o, words, lanes)
    return np.bitwise_or.reduce(lanes << (np.arange(per_word, dtype=np.uint32) * bits), axis=-1)


def unpack_bits(words: np.ndarray, bits: int) -> np.ndarray:
    """The inverse of `pack_bits`: uint8 (o, i)."""
    shifts = np.arange(32 // bits, dtype=np.uint32) * bits
    return ((words[..., None] >> shifts) & (2**bits - 1)).astype(np.uint8).reshape(words.shape[0], -1)


def from_gguf(raw: bytes, kind: str, rows: int) -> Packed:
    """Rows of GGUF blocks as MLX groups, nothing rounded: Q4_1 is d q + m; Q4_0 is d (q - 8); Q8_0 is d q with signed q, here q + 128.

    Scales and biases are float16 as in the file, or float32 where -8 d or -128 d leaves float16's range. Values equal GGUF's own
    dequantisation in every bit but the sign of a zero: d q has at most 19 bits and -8 d is exact, so float32 rounds only where GGUF's sum does.
    """
    size, bits = REPACKABLE[kind]
    blocks = np.frombuffer(raw, np.uint8).reshape(rows, -1, size)  # (o, g, bytes)
    d = np.ascontiguousarray(blocks[..., :2]).view("<f2")[..., 0]  # (o, g)
    if kind == "Q4_1":
        biases = np.ascontiguousarray(blocks[..., 2:4]).view("<f2")[..., 0]  # (o, g)
    else:
        wide = d.astype(np.float32) * np.float32(-8 if kind == "Q4_0" else -128)  # (o, g)
        with np.errstate(over="ignore"):
            narrow = wide.astype(np.float16)
        biases = narrow if np.array_equal(narrow.astype(np.float32), wide) else wide
    if kind == "Q8_0":
        q = blocks[..., 2:] ^ 0x80  # two's complement to offset 128
    else:
        pairs = blocks[..., size - 16 :]  # low halves are the first 16 numbers
        q = np.concatenate([pairs & 15, pairs >> 4], axis=-1)  # (o, g, 32)
    return Packed(pack_bits(q.reshape(rows, -1), bits), d.astype(biases.dtype), biases, bits, GGUF_GROUP)


def two_valued(w: np.ndarray) -> Packed | None:
    """w float32 (o, i) in groups of 32 that hold at most two numbers each, such as a diagonal's: packed to 4 bits unrounded. None for any other."""
    if w.shape[1] % GGUF_GROUP:
        return None
    grouped = w.reshape(len(w), -1, GGUF_GROUP)  # (o, g, 32)
    low, high = grouped.min(-1), grouped.max(-1)  # (o, g)
    q = grouped == high[..., None]  # (o, g, 32)
    scales, biases = (high - low).astype(np.float16), low.astype(np.float16)
    p = Packed(pack_bits(q.reshape(len(w), -1).astype(np.uint8), 4), scales, biases, 4, GGUF_GROUP)
    return p if np.array_equal(p.values(), w) else None


def round_to(w: np.ndarray, scales: np.ndarray, biases: np.ndarray, bits: int, group: int) -> Packed:
    """w float32 (o, i) rounded to the grid of scales and biases (o, g), which are kept in float16 where that holds them well."""
    normal = np.abs(scales[scales != 0])
    half = np.float16
    fits = not normal.size or (normal.min() >= np.finfo(half).tiny and max(normal.max(), np.abs(biases).max()) <= np.finfo(half).max)
    scales, biases = (a.astype(half if fits else np.float32) for a in (scales, biases))
    step, start = (a.astype(np.float32)[..., None] for a in (scales, biases))
    with np.errstate(divide="ignore", invalid="ignore"):
        q = np.rint((w.reshape(len(w), -1, group) - start) / step)  # (o, g, group)
    q = np.clip(np.nan_to_num(q, nan=0.0), 0, 2**bits - 1)
    return Packed(pack_bits(q.reshape(len(w), -1).astype(np.uint8), bits), scales, biases, bits, group)
