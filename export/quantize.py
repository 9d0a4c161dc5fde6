"""Matrices in blocks of 8- or 4-bit whole numbers for --plain and --portable. Knows the layouts of ONNX Runtime's MatMulNBits and of ONNX's DequantizeLinear.

Axes: o rows (outputs), i columns (inputs), k blocks of a row, m = 32 columns of a block, c columns in use of a block. A value is scale * q, symmetric about zero.
"""

from typing import NamedTuple

import numpy as np

from .options import BLOCK

GRID_SLACK = 0.01  # of a step: how far a value may lie from a 4-bit grid and still be taken for one of its numbers


class Blocks(NamedTuple):
    """q: whole numbers (o, k, m) int8, zeros where a row's last block has no columns. scales (o, k) float16. columns: i."""

    q: np.ndarray
    scales: np.ndarray
    columns: int


def to_blocks(weight: np.ndarray, bits: int) -> Blocks:
    """Round weight (o, i) to the nearest of the block's values.

    8 bits: scale = largest magnitude / 127, so that GGUF's Q8_0 keeps its values; a block of GGUF's Q4_1 gets a scale that nearly keeps its own
    (`shared_steps`). 4 bits: scale = the value of largest magnitude / -8, so that it is met exactly.
    """
    rows, columns = weight.shape
    padded = np.zeros((rows, -(-columns // BLOCK) * BLOCK), np.float32)
    padded[:, :columns] = weight
    w = padded.reshape(rows, -1, BLOCK)  # (o, k, m)
    if bits == 8:
        scales = shared_steps(w, np.abs(w).max(-1) / 127).astype(np.float16)  # (o, k)
        low, high = -127, 127
    else:
        extreme = np.take_along_axis(w, np.abs(w).argmax(-1)[..., None], -1)[..., 0]  # (o, k)
        scales = (extreme / -8).astype(np.float16)
        low, high = -8, 7
    s = scales.astype(np.float32)[..., None]
    ratio = np.divide(w, s, out=np.zeros_like(w), where=s != 0)
    return Blocks(np.clip(np.rint(ratio), low, high).astype(np.int8), scales, columns)


def shared_steps(w: np.ndarray, usual: np.ndarray) -> np.ndarray:
    """`usual` scales (o, k) of blocks w (o, k, m), replaced where a block is min + d * (0 .. 15) as in GGUF's Q4_1.

    There scale = d / j with the whole number j, of those that fit into 127 steps, for which min is nearest to a whole number of steps: d is then
    met exactly and min to a fraction of a step, where rounding to the usual scale would be off by up to half a step in every value.
    """
    low, high = w.min(-1), w.max(-1)  # (o, k)
    d = (high - low) / 15
    grid = np.divide(w - low[..., None], d[..., None], out=np.zeros_like(w), where=d[..., None] > 0)
    found = (d > 0) & (np.abs(grid - np.rint(grid)).max(-1) < GRID_SLACK)
    best, scales = np.full(low.shape, np.inf, np.float32), usual.copy()
    start = np.divide(low, d, out=np.zeros_like(low), where=d > 0)  # min in units of d
    for j in range(1, 128 // 8):
        steps = np.rint(start * j)
        off = np.abs(start * j - steps) / j
        better = found & (np.abs(steps) <= 127) & (np.abs(steps + 15 * j) <= 127) & (off < best)
        best[better] = off[better]
        scales[better] = (d / j)[better]
    return scales


def refined(blocks: Blocks, weight: np.ndarray, loudness: np.ndarray) -> Blocks:
    """8-bit `blocks` of weight (o, i) whose last block holds a few columns only, with the scale of that block chosen for them.

    Of the scales largest / 127 .. largest / 64 it takes the one with the smallest error, a column's counting by its `loudness` (at most m,), the share
    of the input's power that it meets: few numbers come near a scale's multiples that 32 do not.
    """
    w = weight[:, (blocks.q.shape[1] - 1) * BLOCK :][:, : len(loudness)]  # (o, c)
    largest = np.abs(w).max(-1)  # (o,)
    best, scales = np.full(len(w), np.inf, np.float32), blocks.scales.copy()
    q = blocks.q.copy()
    for steps in range(127, 63, -1):
        s = (largest / steps).astype(np.float16)  # (o,)
        wide = s.astype(np.float32)[:, None]
        near = np.rint(np.divide(w, wide, out=np.zeros_like(w), where=wide != 0))
        off = (loudness * np.square(near * wide - w)).sum(-1)  # (o,)
        better = (off < best) & (np.abs(near).max(-1) <= 127)
        best[better], scales[better, -1] = off[better], s[better]
        q[better, -1, : len(loudness)] = near[better]
    return Blocks(q, scales, blocks.columns)


def values(blocks: Blocks) -> np.ndarray:
    """The float32 matrix (o, i) that the blocks stand for."""
    w = blocks.q.astype(np.float32) * blocks.scales.astype(np.float32)[..., None]  # (o, k, m)
    return np.ascontiguousarray(w.reshape(w.shape[0], -1)[:, : blocks.columns])


def nbits(blocks: Blocks, bits: int) -> np.ndarray:
    """MatMulNBits' layout: unsigned numbers with zero at 2^(bits - 1), uint8 (o, k, m * bits / 8); of a byte the low half comes first."""
    unsigned = (blocks.q.astype(np.int16) + (1 << (bits - 1))).astype(np.uint8)
    return unsigned if bits == 8 else unsigned[..., ::2] | (unsigned[..., 1::2] << 4)


def packed_int4(q: np.ndarray) -> np.ndarray:
    """Whole numbers -8 .. 7 as ONNX's INT4: uint8, two's complement, in the order of the array, the low half of a byte first."""
    flat = q.reshape(-1).astype(np.uint8) & 15
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    return flat[::2] | (flat[1::2] << 4)
