"""What ai.lm2::GatedMemoryUpdate version 1 computes, in NumPy. Knows arrays; no ONNX, no model."""

import numpy as np
from numpy.typing import NDArray

from ...models.errors import LM2Error
from . import INPUTS, NAME


class OpInputError(LM2Error, ValueError):
    """The inputs of the op differ in shape or type, or have a type that it does not take."""


def gated_memory_update(i: NDArray, f: NDArray, z: NDArray, old: NDArray) -> NDArray:
    """new = sigmoid(i) * tanh(z) + sigmoid(f) * old, elementwise (LM2 equation 6).

    All four arrays have one shape, of any rank and with any axis 0 long ((B, T, D) in a model), and one dtype, float32 or float16; so has the
    result. The gates are rounded to float32, for float16 too; the rest is computed exactly enough to be rounded once, at the end.
    NaN gives NaN; infinities follow from the equation, so sigmoid(-inf) * inf is NaN. Raises OpInputError.
    """
    given = dict(zip(INPUTS, (i, f, z, old), strict=True))
    for name, array in given.items():
        if not isinstance(array, np.ndarray):
            raise OpInputError(f"{NAME}: input {name} is a {type(array).__name__}; give a NumPy array of float32 or float16")
        if array.dtype not in (np.float32, np.float16):
            raise OpInputError(f"{NAME}: input {name} has dtype {array.dtype}; give float32 or float16")
        if array.dtype != i.dtype or array.shape != i.shape:
            raise OpInputError(
                f"{NAME}: input i is {i.dtype} {i.shape} and input {name} is {array.dtype} {array.shape}; the four inputs i, f, z, old need "
                "one shape and one dtype"
            )
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        written = _sigmoid(i) * np.tanh(z.astype(np.float64)).astype(np.float32).astype(np.float64)
        return np.asarray(written + _sigmoid(f) * old.astype(np.float64)).astype(i.dtype)


def _sigmoid(x: NDArray) -> NDArray:
    """The float32 nearest to the sigmoid, as float64."""
    return (1 / (1 + np.exp(-x.astype(np.float64)))).astype(np.float32).astype(np.float64)
