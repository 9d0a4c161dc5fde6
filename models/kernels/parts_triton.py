"""Small Triton functions the kernels share. Knows numbers of one dtype; launches nothing."""

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)), in x's dtype; NaN gives NaN."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x):
    """tanh in x's dtype. float32 takes an odd polynomial near 0, where 1 - 2 / (exp(2x) + 1) would lose its relative precision."""
    far = 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)
    if x.dtype == tl.float64:
        return far
    s = x * x
    near = x + x * s * (-0.3333333333 + s * (0.1333333333 + s * (-0.0539682540 + s * 0.0218694885)))
    return tl.where(tl.abs(x) < 0.25, near, far)
