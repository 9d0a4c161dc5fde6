"""A second window like one that is there: its buffers copied as far as they are filled. Knows windows' states; no model."""

from torch import Tensor

from .lm2 import GatedInside, WindowState


def copied(state: WindowState) -> WindowState | None:
    """The same window, whose keys, values and rows lie in memory of their own; what only a fold or a new window makes anew is shared. None for cell released."""
    inside = state.inside
    if not isinstance(inside, GatedInside):
        return None
    waiting = max(0, state.length - state.folded)
    rows, writes = (None if tensor is None else _filled(tensor, 2, waiting) for tensor in (inside.rows, inside.writes))
    keys, values = (_filled(tensor, 3, state.length) for tensor in (state.keys, state.values))
    return state._replace(keys=keys, values=values, inside=inside._replace(rows=rows, writes=writes))


def _filled(tensor: Tensor, axis: int, count: int) -> Tensor:
    """A tensor of the same shape with the first `count` of an axis; nothing is said of the others."""
    out = tensor.new_empty(tensor.shape)
    out.narrow(axis, 0, count).copy_(tensor.narrow(axis, 0, count))
    return out
