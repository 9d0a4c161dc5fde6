"""How far apart two backends may be, by precision, and one measured figure beside its gate. Knows numbers, no backend and no model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..backend import Description


@dataclass(frozen=True)
class Gates:
    """None: the figure is reported, not judged. Logits over a whole model; bank after every chunk; greedy: the same tokens are required.

    top1_clear counts positions where the two likeliest tokens are clearly apart. tensor: relative L2 from which `--explain` says that a
    layer's tensor disagrees.
    """

    logits_max: float | None = None
    logits_l2: float | None = None
    top1_clear: float | None = None
    top1: float | None = None
    kl: float | None = None
    bank: float | None = None
    greedy: bool = False
    tensor: float = 1e-4


GATES: Mapping[str, Gates] = {
    "float32": Gates(logits_max=5e-4, logits_l2=1e-5, top1_clear=1.0, bank=1e-10, greedy=True, tensor=1e-4),
    "float16": Gates(logits_l2=5e-3, bank=1e-5, tensor=5e-3),
    "bfloat16": Gates(logits_l2=5e-2, bank=3e-4, tensor=5e-2),
    "quantised": Gates(top1=0.97, kl=0.01, tensor=5e-2),
    "repacked": Gates(top1=0.99, kl=0.001, tensor=5e-2),
}


def precision(*sides: Description) -> str:
    """Which row of GATES judges these backends: the coarsest among them.

    `repacked` is a quantised backend that took over a GGUF's own numbers without rounding; against the model converted from that GGUF it
    should differ by arithmetic alone.
    """
    packed = [side.quantization for side in sides if side.quantization != "none"]
    if packed:
        return "repacked" if all("repacked" in name for name in packed) else "quantised"
    for name in ("bfloat16", "float16"):
        if any(side.dtype == name for side in sides):
            return name
    return "float32"


@dataclass(frozen=True)
class Check:
    """One line of a report: `value` must be <= or >= `gate`. No gate: reported only, `passed` is None. NaN never passes.

    unit: "" for a plain number, "%" for a share of 1, "n" for a count.
    """

    section: str
    name: str
    value: float
    gate: float | None = None
    relation: Literal["<=", ">="] = "<="
    unit: str = ""
    note: str = ""

    @property
    def passed(self) -> bool | None:
        if self.gate is None:
            return None
        return self.value <= self.gate if self.relation == "<=" else self.value >= self.gate
