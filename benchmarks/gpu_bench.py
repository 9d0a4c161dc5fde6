"""What the sections of benchmarks/gpu.py share: the device, timing, models drawn on the device, and what a section hands back. Knows no section."""

import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import torch


class Skipped(Exception):
    """A section that cannot run here; the message says why."""


@dataclass
class Section:
    """What a section found. header, rows: a Markdown table. facts: numbers by name. notes: lines. judged: (what, measured, gate, passed)."""

    header: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    facts: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    judged: list[tuple[str, str, str, bool]] = field(default_factory=list)


@dataclass
class Bench:
    """device: where it runs. toy: sizes for an interpreter. seed: of all inputs. facts: those of the sections that ran before, by name."""

    device: torch.device
    toy: bool
    seed: int
    folder: Any
    facts: dict[str, float] = field(default_factory=dict)

    def judge(self, section: Section, what: str, measured: str, gate: str, met: bool) -> None:
        """A time beside its gate; at toy sizes there is nothing to judge."""
        if not self.toy:
            section.judged.append((what, measured, gate, met))

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def sync(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def seconds(self, run: Any, repeats: int = 20, inner: int = 1) -> float:
        """Median time of `run`, called `inner` times between two marks; by the device's own clock on CUDA. Two calls warm up."""
        repeats, inner = (1, 1) if self.toy else (repeats, inner)
        for _ in range(1 if self.toy else 2):
            run()
        self.sync()
        times = []
        for _ in range(repeats):
            if self.cuda:
                a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                a.record()
                for _ in range(inner):
                    run()
                b.record()
                b.synchronize()
                times.append(a.elapsed_time(b) / 1e3 / inner)
            else:
                t = time.perf_counter()
                for _ in range(inner):
                    run()
                times.append((time.perf_counter() - t) / inner)
        return statistics.median(times)

    def generator(self, device: Any = None) -> torch.Generator:
        return torch.Generator(device or self.device).manual_seed(self.seed)

    def free(self) -> None:
        """Give back what earlier models held."""
        import gc

        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    def model(self, config: Any, dtype: torch.dtype) -> Any:
        """A model with random weights, drawn on the device: matrices N(0, 1 / fan-in), norms 1, biases small."""
        from lm2.models.weights import new_model

        model, g = new_model(config, self.device, dtype), self.generator()
        with torch.no_grad():
            for name, p in model.named_parameters():
                if p.dim() < 2:
                    p.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.1)
                else:
                    p.normal_(0, 1.0 if "embed" in name else p.shape[-1] ** -0.5, generator=g)
        return model

    def bank(self, model: Any, batch: int) -> torch.Tensor:
        """A written memory (l, b, n, d) of random numbers."""
        bank = model.initial_bank(batch)
        return bank.normal_(0, 0.5, generator=self.generator()) if bank.numel() else bank


def gbps(count: float, seconds: float) -> str:
    return f"{count / seconds / 1e9:.0f}" if count / seconds > 1e9 else f"{count / seconds / 1e9:.4f}"


def ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f}"
