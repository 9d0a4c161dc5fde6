"""Tables of cosines and sines of the rotary embedding as nodes that a runtime folds when it loads the file: 8,192 positions of them would be 2 MB of it.

Angles are float32 products, as the reference computes them; cosines and sines are taken in float64 and rounded once, so that every runtime has the same.

Axes: p positions, w pairs that turn (e / 2).
"""

import numpy as np
from onnx import TensorProto

from ..models.config import RopeConfig
from .graph import Graph


def rotary_tables(g: Graph, rope: RopeConfig, of: str, head_dim: int, positions: int, dtype: str, stored: bool = False) -> tuple[str, str]:
    """Cosines and sines (p, w) of the rotary embedding `of` the model in `dtype`, times its amplitudes. stored: as weights, with nothing left to compute."""
    if stored:
        turned = np.arange(positions, dtype=np.float32)[:, None] * np.array(rope.inverse_frequencies(head_dim), np.float32)  # (p, w)
        amplitudes = np.array(rope.amplitudes(head_dim), np.float32)
        tables = {kind: (f(turned.astype(np.float64)).astype(np.float32) * amplitudes).astype(dtype) for kind, f in (("cos", np.cos), ("sin", np.sin))}
        return g.store.add(f"rope.{of}cos", tables["cos"]), g.store.add(f"rope.{of}sin", tables["sin"])
    inverse = g.store.add(f"rope.{of}inverse", np.array(rope.inverse_frequencies(head_dim), np.float32))  # (w,)
    line = g.cast(g.op("Range", g.constant(0), g.constant(positions), g.constant(1)), "float32")  # (p,)
    angles = g.op("Mul", g.op("Unsqueeze", line, g.constant([1])), inverse)  # (p, w)
    wide = g.op("Cast", angles, to=TensorProto.DOUBLE)  # (p, w)
    size = np.array(rope.amplitudes(head_dim), np.float32)
    made = []
    for kind in ("Cos", "Sin"):
        table = g.cast(g.op(kind, wide, name=f"rope.{of}{kind.lower()}"), "float32")  # (p, w)
        table = table if (size == 1).all() else g.op("Mul", table, g.store.add(f"rope.{of}{kind.lower()}.size", size))
        made.append(table if dtype == "float32" else g.cast(table, dtype))
    return made[0], made[1]
