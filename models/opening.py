"""Keys and values that stand before everything in a window: prefix tuning (Li and Liang 2021, arXiv 2101.00190).

Knows arrays and a model's shape; no ML library, no backend, and not where an opening comes from.
Axes: L layers, k key/value heads, p positions of the opening, e head width, W positions of a window.
"""

from typing import NamedTuple

import numpy as np

from .config import LM2Config
from .errors import BackendError


class Opening(NamedTuple):
    """What a window opens with at positions 0 .. p - 1 of every layer, for all sequences of a batch alike. The first token fed stands at position p.

    keys, values: (L, k, p, e), float16, float32 or float64; keys as attention compares them, normed and turned by their positions where a layer does that.
    Nothing of an opening is ever written in the bank.
    """

    keys: np.ndarray
    values: np.ndarray

    @property
    def positions(self) -> int:
        """p."""
        return int(self.keys.shape[2])

    def check(self, config: LM2Config, window: int, largest: float = float("inf")) -> None:
        """Raise BackendError for an opening that the model's windows of W = `window` positions cannot have.

        largest: the largest number that keys and values are kept in; one above it would become infinite.
        """
        if config.memory.cell != "gated":
            raise BackendError(f"cell {config.memory.cell} has no windows that open with given keys and values: use a model of cell gated")
        layers, heads, width = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
        for name, array in zip(self._fields, self, strict=True):
            if not isinstance(array, np.ndarray) or array.dtype not in (np.float16, np.float32, np.float64):
                kind = getattr(array, "dtype", type(array).__name__)
                raise BackendError(f"an opening's {name} are {kind}: they must be NumPy's float16, float32 or float64")
            shape = array.shape
            if len(shape) != 4 or shape[2] < 1 or (shape[0], shape[1], shape[3]) != (layers, heads, width):
                right = f"[{layers}, {heads}, p, {width}] with p of 1 or more"
                raise BackendError(f"an opening's {name} of shape {list(shape)} do not fit: this model's are {right}")
        if self.keys.shape != self.values.shape:
            both = f"keys of shape {list(self.keys.shape)} and values of shape {list(self.values.shape)}"
            raise BackendError(f"an opening's {both} must be of one shape")
        if self.positions >= window:
            raise BackendError(f"an opening of {self.positions} positions leaves no room in a window of {window}: choose another window")
        for name, array in zip(self._fields, self, strict=True):
            most = float(np.abs(array).max())  # NaN where there is one
            if not np.isfinite(most):
                raise BackendError(f"an opening's {name} have numbers that are not finite: make it anew")
            if most > largest:
                raise BackendError(f"an opening's {name} reach {most:g}, beyond the {largest:g} that this model's are kept in: use a wider dtype")


def carried_with(opening: Opening | None, config: LM2Config, window: int, carried: int, largest: float = float("inf")) -> int:
    """How many of a window's first positions are not written in the bank: `carried`, or with an opening its p where `carried` is 0.

    Positions of the opening are among them. Raises BackendError for fewer than it has, and what `Opening.check` raises.
    """
    if opening is None:
        return carried
    opening.check(config, window, largest)
    if carried and carried < opening.positions:
        p = opening.positions
        raise BackendError(f"{carried} carried positions are fewer than the {p} of the opening, which are among them: give 0, or at least as many")
    return max(carried, opening.positions)
