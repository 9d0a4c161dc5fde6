"""Matrices in blocks of 4-bit numbers with a minimum of their own, as GGUF's Q4_1 has them, for operators that know whole zero points only.

A block's values are d q + m with q from 0 to 15. MatMulNBits and DequantizeLinear compute d (q - z) with z a whole number, which misses m by up to half of d: too
much for a model (docs/decisions.md). What is missing of m is the same for a whole block, so it is the sum of the block's inputs that has to be multiplied
by it (ai.lm2::QLinear, which files without --plain and --portable have, does that inside: blocks.py). The matrix therefore gets one more column per block, in 4-bit blocks too, and its input is x with its block sums appended. Knows NumPy arrays, no graph.

Axes: o rows (outputs), i columns (inputs), k blocks of a row, m = 32 columns of a block, j blocks of the added columns.
"""

from typing import NamedTuple

import numpy as np

from .options import BLOCK

MIDDLE = 8  # zero point of the added columns, which lie on both sides of zero


class OffsetBlocks(NamedTuple):
    """q: 0 .. 15 (o, k + j, m) uint8. scales (o, k + j) float16, zeros (o, k + j) uint8. columns: i + k, those of x and of its block sums."""

    q: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray
    columns: int


def to_offset_blocks(weight: np.ndarray) -> OffsetBlocks:
    """Blocks of weight (o, i), i a multiple of 32. Numbers of a Q4_1 block are met exactly, its minimum to about a thirtieth of a step."""
    rows, columns = weight.shape
    w = weight.reshape(rows, -1, BLOCK)  # (o, k, m)
    low, high = w.min(-1), w.max(-1)  # (o, k)
    d = ((high - low) / 15).astype(np.float16).astype(np.float32)
    step = np.where(d > 0, d, 1)
    q = np.where(d[..., None] > 0, np.clip(np.rint((w - low[..., None]) / step[..., None]), 0, 15), 0)
    minimum = (w - q * d[..., None]).mean(-1)  # (o, k)
    zeros = np.where(d > 0, np.clip(np.rint(-minimum / step), 0, 15), 0)
    added, added_scales = signed_blocks(minimum + zeros * d)  # (o, j, m), (o, j)
    return OffsetBlocks(
        np.concatenate([q, added], 1).astype(np.uint8),
        np.concatenate([d, added_scales], 1).astype(np.float16),
        np.concatenate([zeros, np.full(added_scales.shape, MIDDLE)], 1).astype(np.uint8),
        columns + w.shape[1],
    )


def signed_blocks(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(o, k) in 4-bit blocks about MIDDLE: numbers (o, j, m) and scales (o, j). The value of largest magnitude is met exactly; padding is zero."""
    padded = np.zeros((values.shape[0], -(-values.shape[1] // BLOCK) * BLOCK), np.float32)
    padded[:, : values.shape[1]] = values
    w = padded.reshape(values.shape[0], -1, BLOCK)  # (o, j, m)
    extreme = np.take_along_axis(w, np.abs(w).argmax(-1)[..., None], -1)[..., 0]
    scales = (extreme / -MIDDLE).astype(np.float16).astype(np.float32)  # (o, j)
    ratio = np.divide(w, scales[..., None], out=np.zeros_like(w), where=scales[..., None] != 0)
    return np.clip(np.rint(ratio), -MIDDLE, 15 - MIDDLE) + MIDDLE, scales


def offset_values(blocks: OffsetBlocks) -> np.ndarray:
    """The float32 matrix (o, i) that the blocks stand for."""
    w = (blocks.q.astype(np.float32) - blocks.zeros[..., None]) * blocks.scales.astype(np.float32)[..., None]
    count = blocks.columns // (BLOCK + 1)  # k
    missing = w[:, count:].reshape(len(w), -1)[:, :count]  # (o, k)
    return np.ascontiguousarray((w[:, :count] + missing[..., None]).reshape(len(w), -1))


def pairs(numbers: np.ndarray) -> np.ndarray:
    """4-bit numbers, two in a byte along the last axis, the first in the low half; an odd axis ends with a zero half."""
    if numbers.shape[-1] % 2:
        numbers = np.concatenate([numbers, np.zeros((*numbers.shape[:-1], 1), np.uint8)], -1)
    return numbers[..., ::2] | (numbers[..., 1::2] << 4)
