"""Matrices of the model, plain or quantised, behind one call. Knows one matrix at a time; names and files are weights.py's business.

Axes: b batch, t positions of a call, o outputs, i inputs, g groups of a row.
"""

from collections.abc import Sequence

import mlx.core as mx

# Rows of x from which a CPU is faster with the matrix unpacked for the call: its quantised product is scalar code, unpacking costs about two rows.
UNPACK_ROWS = 3


class Dense:
    """y = x W^T + bias: weight (o, i) in the model's dtype or float32, bias (o,) or None."""

    def __init__(self, weight: mx.array, bias: mx.array | None = None):
        self.weight, self.bias = weight, bias

    @property
    def dtype(self) -> mx.Dtype:
        return self.weight.dtype

    def arrays(self) -> list[mx.array]:
        return [self.weight] if self.bias is None else [self.weight, self.bias]

    def __call__(self, x: mx.array) -> mx.array:
        """x (b, t, i) -> (b, t, o)."""
        if self.bias is None:
            return x @ self.weight.T  # (b, t, o)
        return mx.addmm(self.bias, x, self.weight.T)  # (b, t, o)

    def rows(self, ids: mx.array) -> mx.array:
        """Rows of the matrix, as an embedding: ids (b, t) -> (b, t, i)."""
        return self.weight[ids]  # (b, t, i)


class Quantized:
    """The same with w = scale * q + bias per group of a row: weight (o, i * bits / 32) uint32, scales and biases (o, g) in the model's dtype."""

    def __init__(
        self, weight: mx.array, scales: mx.array, biases: mx.array, bits: int, group: int, cpu: bool, bias: mx.array | None = None
    ):
        self.weight, self.scales, self.biases, self.bias = weight, scales, biases, bias
        self.bits, self.group, self.cpu = bits, group, cpu

    @property
    def dtype(self) -> mx.Dtype:
        return self.scales.dtype

    def arrays(self) -> list[mx.array]:
        return [self.weight, self.scales, self.biases] + ([] if self.bias is None else [self.bias])

    def __call__(self, x: mx.array) -> mx.array:
        """x (b, t, i) -> (b, t, o)."""
        if self.cpu and x.size // x.shape[-1] >= UNPACK_ROWS:
            y = x @ self._unpacked(self.weight, self.scales, self.biases).T  # (b, t, o)
        else:
            y = mx.quantized_matmul(
                x, self.weight, self.scales, self.biases, transpose=True, group_size=self.group, bits=self.bits
            )  # (b, t, o)
        return y if self.bias is None else y + self.bias

    def rows(self, ids: mx.array) -> mx.array:
        """Rows of the matrix, as an embedding: ids (b, t) -> (b, t, i)."""
        return self._unpacked(self.weight[ids], self.scales[ids], self.biases[ids])  # (b, t, i)

    def unpacked(self) -> Dense:
        """The same numbers as a plain matrix in the scales' dtype."""
        weight = self._unpacked(self.weight, self.scales, self.biases)  # (o, i)
        mx.eval(weight)
        return Dense(weight, self.bias)

    def _unpacked(self, weight: mx.array, scales: mx.array, biases: mx.array) -> mx.array:
        return mx.dequantize(weight, scales, biases, group_size=self.group, bits=self.bits)  # (o, i)


Linear = Dense | Quantized


def stacked(parts: Sequence[Linear]) -> list[Linear]:
    """The matrices as one, outputs side by side, where they are of one kind; else as they are. One product then reads x once."""
    first = parts[0]
    biases = [p.bias for p in parts]
    if any((b is None) != (biases[0] is None) for b in biases):
        return list(parts)
    bias = None if biases[0] is None else mx.concatenate([b for b in biases if b is not None])  # (o,)
    if all(isinstance(p, Dense) and p.dtype == first.dtype for p in parts):
        return [Dense(mx.concatenate([p.weight for p in parts]), bias)]
    if isinstance(first, Quantized) and all(isinstance(p, Quantized) and (p.bits, p.group) == (first.bits, first.group) for p in parts):
        weight, scales, offsets = (mx.concatenate([getattr(p, a) for p in parts]) for a in ("weight", "scales", "biases"))
        return [Quantized(weight, scales, offsets, first.bits, first.group, first.cpu, bias)]
    return list(parts)


def apply_stacked(parts: Sequence[Linear], x: mx.array) -> mx.array:
    """Outputs of all parts side by side: x (b, t, i) -> (b, t, sum of o)."""
    return parts[0](x) if len(parts) == 1 else mx.concatenate([p(x) for p in parts], axis=-1)  # (b, t, o)
