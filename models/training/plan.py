"""The course of a training run: how long, at what rate, and how many chunks when. Plain Python; knows no model."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import LM2Error


class TrainError(LM2Error):
    """A training run cannot be started or resumed. The message says what is wrong and what to do."""


@dataclass(frozen=True)
class Stage:
    """Until `until` (share of all steps): streams of `least` to `most` chunks, `batch` of them a step. conflicts: how often facts are overruled."""

    until: float
    least: int
    most: int
    batch: int
    conflicts: float = 0.0


@dataclass(frozen=True)
class Plan:
    """A run. steps: of the optimiser. rate: AdamW's peak. flat: share of steps before the cosine begins. quiet: weight of the gate penalty."""

    task: str
    steps: int
    rate: float
    seed: int
    stages: tuple[Stage, ...]
    warmup: int = 100
    flat: float = 0.3
    floor: float = 0.05
    decay: float = 0.02
    clip: float = 1.0
    quiet: float = 0.1

    def stage(self, step: int) -> Stage:
        """The stage of a step counted from 0."""
        share = step / self.steps
        return next((s for s in self.stages if share < s.until), self.stages[-1])

    def rate_at(self, step: int) -> float:
        """Warm-up, a plateau, then a cosine down to `floor` of the peak."""
        share = step / self.steps
        warm = min(1.0, (step + 1) / self.warmup)
        if share <= self.flat:
            return self.rate * warm
        turn = math.pi * (share - self.flat) / (1.0 - self.flat)
        return self.rate * warm * (self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(turn)))

    def to_dict(self) -> dict[str, Any]:
        """For the run's record; a run is resumed only under an equal plan."""
        return asdict(self)


def stages(text: str) -> tuple[Stage, ...]:
    """Read `0.1:1-2x12,0.5:1-4x8,1:2-8x6!0.3`: until a share of the steps, so many chunks, so many streams, conflicts. Raises TrainError."""
    out = []
    for part in text.split(","):
        try:
            until, rest = part.split(":")
            rest, _, conflicts = rest.partition("!")
            chunks, batch = rest.split("x")
            least, _, most = chunks.partition("-")
            out.append(Stage(float(until), int(least), int(most or least), int(batch), float(conflicts or 0)))
        except ValueError:
            raise TrainError(f"stage {part!r} must read like 0.5:1-4x8 (until half of the steps, 1 to 4 chunks, 8 streams)") from None
    shares = [s.until for s in out]
    if shares != sorted(shares) or shares[-1] != 1.0 or any(not 1 <= s.least <= s.most or s.batch < 1 for s in out):
        raise TrainError(f"stages {text!r} must end at 1, in ascending order, with at least one chunk and one stream each")
    return tuple(out)
