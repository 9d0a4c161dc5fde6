"""The training loop: steps, the optimiser, checkpoints that resume bit for bit, and what people see meanwhile.

Knows no task and no data. One process or several under torchrun; every process draws its own batches, gradients are averaged.
"""

import json
import math
import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import IO, Any, BinaryIO, NamedTuple, Protocol, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..atomic import write_file
from ..errors import ModelFileError
from ..lm2 import LM2
from . import together
from .curves import Curves
from .origin import difference
from .plan import Plan, Stage, TrainError

Named = list[tuple[str, torch.nn.Parameter]]
STATE = "state.pt"
EVERY, SAVE_EVERY = 25, 250
SAVE_SECONDS = 300.0  # or after so long, where steps are slow


class Terms(NamedTuple):
    """One step's loss (differentiable), gate penalty (the mean input gate on tokens that tell nothing), figures, right answers by kind, tokens."""

    loss: Tensor
    quiet: Tensor
    figures: dict[str, float]
    hits: dict[str, list[bool]]
    tokens: int


class Task(Protocol):
    """What is trained. `state` and `restore` are for what the next step depends on beside weights and random numbers. aids: what is trained
    beside the model and left behind, or None. A task may have `slow`: parts of names, and the share of the rate that those weights learn at."""

    model: LM2
    aids: torch.nn.Module | None

    def step(self, stage: Stage, rng: random.Random) -> Terms: ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...


def run(
    task: Task,
    plan: Plan,
    out: Path,
    half: bool = False,
    say: Callable[[str], None] = print,
    until: int | None = None,
    seconds: float = math.inf,
    origin: Mapping[str, str] | None = None,
) -> bool:
    """Train to the plan's end, to step `until` or for about `seconds`, resuming what is in `out`. True when the plan's last step is done.

    half: matrix products in bfloat16. origin: what the run began from (origin.py); a checkpoint of another one is refused. Ctrl-C (and SIGTERM) ends after the step in progress, with a checkpoint; a kill loses the steps since the
    last one. In one process a resumed run ends in the same bits as one that was never stopped; of several, process 0 goes on with its draws
    and the others draw anew. Raises TrainError when `out` holds a run of another plan or model (other data is said, not refused), ModelFileError when its
    checkpoint cannot be read.
    """
    trainable = [(name, p) for name, p in task.model.named_parameters() if p.requires_grad]
    if task.aids is not None:
        trainable += [(f"aids.{name}", p) for name, p in task.aids.named_parameters()]
    slow: Mapping[str, float] = getattr(task, "slow", {})
    usual = [(name, p) for name, p in trainable if not any(part in name for part in slow)]
    groups: list[dict[str, Any]] = [
        {"params": [p for _, p in usual if p.dim() == 2], "weight_decay": plan.decay},
        {"params": [p for _, p in usual if p.dim() != 2], "weight_decay": 0.0},
    ]
    groups += [{"params": [p for name, p in trainable if part in name], "weight_decay": plan.decay, "share": share} for part, share in slow.items()]
    optimizer = torch.optim.AdamW(groups, lr=plan.rate, betas=(0.9, 0.98))
    out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"{plan.seed} {together.rank()}")
    run_of = dict(origin or {})
    begin = _resume(out / STATE, task, plan, half, run_of, trainable, optimizer, rng, say)
    together.same([p for _, p in trainable])
    last = plan.steps if until is None else min(until, plan.steps)
    curves = Curves(out, begin) if together.rank() == 0 else None
    say(f"seed {plan.seed}; {sum(p.numel() for _, p in trainable):,} trainable parameters; step {begin} of {plan.steps}")
    done, at = begin, time.monotonic()
    saved = at
    end = at + seconds
    tokens, steps = 0, 0
    sums: dict[str, float] = {}
    hits: dict[str, list[bool]] = {}
    with _Stopping() as stopping:
        for step in range(begin, last):
            stage = plan.stage(step)
            for group in optimizer.param_groups:
                group["lr"] = plan.rate_at(step) * group.get("share", 1.0)
            with torch.autocast(task.model.device.type, torch.bfloat16, enabled=half):
                terms = task.step(stage, rng)
            optimizer.zero_grad()
            (terms.loss + plan.quiet * terms.quiet).backward()
            together.average([p for _, p in trainable])
            norm = torch.nn.utils.clip_grad_norm_([p for _, p in trainable], plan.clip)
            if not torch.isfinite(norm):
                raise TrainError(f"step {step}: the gradient is not finite: begin again with a lower --rate and another --out")
            optimizer.step()
            stopping.asked = together.any_of(stopping.asked or time.monotonic() > end, task.model.device)
            done, tokens, steps = step + 1, tokens + terms.tokens, steps + 1
            figures = {"loss": float(terms.loss.detach()), "quiet": float(terms.quiet.detach()), "norm": float(norm), **terms.figures}
            sums = {k: sums.get(k, 0.0) + v for k, v in figures.items()}
            for kind, right in terms.hits.items():
                hits.setdefault(kind, []).extend(right)
            if done % EVERY == 0 or done == last:
                now = time.monotonic()
                row = {k: v / steps for k, v in sums.items()} | {
                    "tokens_per_s": tokens * together.size() / (now - at),
                    "rate": plan.rate_at(step),
                }
                shares = {kind: sum(right) / len(right) for kind, right in sorted(hits.items()) if right}
                if curves is not None:
                    curves.add(done, row, shares)
                say(_line(done, plan, stage, row, shares))
                at, tokens, sums, hits, steps = now, 0, {}, {}, 0
            due = done % SAVE_EVERY == 0 or saved + SAVE_SECONDS < time.monotonic()
            if (due or done == last or stopping.asked) and curves is not None:
                saved = time.monotonic()
                _save(out / STATE, task, plan, half, run_of, trainable, optimizer, rng, done)
                curves.draw()
            if stopping.asked:
                break
    if done < plan.steps:
        say(f"stopped at step {done} of {plan.steps}; the same command goes on from there")
    return done >= plan.steps


def _line(step: int, plan: Plan, stage: Stage, row: dict[str, float], shares: dict[str, float]) -> str:
    right = " ".join(f"{kind} {100 * share:.0f}%" for kind, share in shares.items())
    figures = " ".join(f"{k} {v:.3f}" for k, v in row.items() if k not in ("tokens_per_s", "rate"))
    return f"step {step}/{plan.steps} chunks {stage.least}-{stage.most} {figures} {row['tokens_per_s']:.0f} tokens/s  {right}"


def _save(
    file: Path,
    task: Task,
    plan: Plan,
    half: bool,
    origin: dict[str, str],
    trainable: Named,
    optimizer: Optimizer,
    rng: random.Random,
    step: int,
) -> None:
    version, numbers, gauss = rng.getstate()
    record = {
        "plan": json.dumps(plan.to_dict(), sort_keys=True),
        "half": half,
        "origin": origin,
        "step": step,
        "weights": {name: p.detach() for name, p in trainable},
        "optimizer": optimizer.state_dict(),
        "task": task.state(),
        "random": [version, list(numbers), gauss],
        "torch_random": torch.get_rng_state(),
    }
    write_file(file, lambda f: _dump(record, f))


def _dump(record: dict[str, Any], f: BinaryIO) -> None:
    """torch.save, which makes a RuntimeError of its own of a full disk: here the OSError comes through."""
    kept = _Noting(f)
    try:
        torch.save(record, cast("IO[bytes]", kept))
    except RuntimeError:
        if kept.error is not None:
            raise kept.error from None
        raise


class _Noting:
    """A file that remembers why a write failed."""

    def __init__(self, f: BinaryIO):
        self._file = f
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self._file.flush()


def _resume(
    file: Path,
    task: Task,
    plan: Plan,
    half: bool,
    origin: dict[str, str],
    trainable: Named,
    optimizer: Optimizer,
    rng: random.Random,
    say: Callable[[str], None],
) -> int:
    if not file.exists():
        return 0
    try:
        record = torch.load(file, map_location="cpu", weights_only=True)
        have = json.loads(record["plan"]) | {"half": record.get("half", half)}
        want = json.loads(json.dumps(plan.to_dict())) | {"half": half}
        for key in sorted(set(have) | set(want)):
            if have.get(key) != want.get(key):
                raise _other(file, key, have.get(key), want.get(key))
        if "origin" in record:
            began, here = dict(record["origin"]), dict(origin)
            data = began.pop("data", None), here.pop("data", None)
            if (other := difference(began, here)) is not None:
                raise _other(file, *other)
            if data[0] != data[1]:
                finished = int(record["step"]) >= plan.steps
                how = " and is finished: give another --out to train on this" if finished else "; its next steps are on this"
                say(f"{file} is of a run that began with other data{how}")
        elif origin:
            say(f"{file} was written before runs noted what they began from: going on with this model and this data")
        weights = record["weights"]
        shapes = {name: list(p.shape) for name, p in trainable}
        for name in sorted(set(weights) | set(shapes)):
            there = list(weights[name].shape) if name in weights else None
            if there != shapes.get(name):
                raise _other(file, name, there, shapes.get(name))
        for name, p in trainable:
            p.data.copy_(weights[name])
        optimizer.load_state_dict(record["optimizer"])
        task.restore(record["task"])
        if together.rank() == 0:
            version, numbers, gauss = record["random"]
            rng.setstate((version, tuple(numbers), gauss))
        else:
            rng.seed(f"{plan.seed} {together.rank()} {record['step']}")
        torch.set_rng_state(record["torch_random"])
        return int(record["step"])
    except TrainError:
        raise
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate" not in str(error):
            raise ModelFileError(f"{file} cannot be read ({type(error).__name__}): remove it to begin again") from None
        size = file.stat().st_size
        raise ModelFileError(
            f"{file} has {size} bytes, more than this machine's memory has left: close other programs or use another machine"
        ) from None
    except Exception as error:
        raise ModelFileError(f"{file} cannot be read ({type(error).__name__}): remove it to begin again") from None


def _other(file: Path, what: str, have: object, want: object) -> TrainError:
    return TrainError(f"{file} is of a run with {what} {have!r}, this one has {want!r}: give the same options, or another --out")


class _Stopping:
    """Turns Ctrl-C and SIGTERM into a flag while a step is under way; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    def __enter__(self) -> "_Stopping":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def threads(count: int | None) -> None:
    """Use `count` CPU threads (default: all)."""
    torch.set_num_threads(count or os.cpu_count() or 1)
