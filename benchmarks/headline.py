"""LM2 beside RMT and a Llama without memory on BABILong, from nothing: trained on the same batches, measured on the same samples.

    python benchmarks/headline.py --data DIR --out runs/headline --size small

trains each model of each seed (`lm2 train tiny --task babilong --memory ...`), measures it (`lm2 eval`), and writes OUT/table.md, results.json and headline.png after
each step. The same command goes on from whatever is there, also after a kill -9. `--table` only writes the files anew. docs/babilong.md has what came out.
"""

import argparse
import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))
from headline_table import Found, draw, markdown, merged

from lm2.models.atomic import write_file
from lm2.models.tensorfile import read_header

ARMS = ("lm2", "rmt", "none")
LM2 = [sys.executable, "-c", "from lm2.cli import main; main()"]


class Measure(NamedTuple):
    """Lengths as `lm2 eval` takes them, and samples of each task at each."""

    lengths: str
    samples: int


class Size(NamedTuple):
    """A comparison: steps and stages of every run, tasks, seeds, what is measured."""

    steps: int
    stages: str
    tasks: str
    seeds: int
    measures: tuple[Measure, ...]


FIVE = "qa1,qa2,qa3,qa4,qa5"
SIZES = {
    "tiny": Size(4, "1:1-2x2", "qa1,qa4", 1, (Measure("0k,500", 3),)),  # to see that it runs
    "small": Size(1000, "0.4:1-2x24,0.75:1-4x12!0.2,1:2-8x8!0.5", FIVE, 1, (Measure("0k,1k,2k,4k", 40), Measure("8k,16k,32k", 8))),
    "full": Size(
        12000, "0.06:1-2x48,0.17:1-4x24!0.1,0.42:2-8x14!0.3,1:5-16x8!0.45", FIVE + ",qa6,qa7,qa8,qa9,qa10", 3,
        (Measure("0k,1k,2k,4k,8k,16k,32k", 100),),
    ),
}  # fmt: skip


def main() -> None:
    """Read the options, then train, measure and write until all is there."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, required=True, help="babi/ and background/, as for lm2 train")
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--size", choices=list(SIZES), default="small")
    p.add_argument("--seeds", help="such as 0,1,2; default: those of the size, from 0")
    p.add_argument("--arms", default=",".join(ARMS), help="of " + ", ".join(ARMS))
    p.add_argument("--table", action="store_true", help="train and measure nothing, write table and figure of what is there")
    p.add_argument("--threads", type=int, default=1)
    given = p.parse_args()
    size = SIZES[given.size]
    seeds = [int(s) for s in given.seeds.split(",")] if given.seeds else list(range(size.seeds))
    arms = given.arms.split(",")
    _same(given.out, given.size, size)
    todo = [(seed, arm) for seed in seeds for arm in arms]
    for number, (seed, arm) in enumerate(todo):
        place = given.out / f"{arm}-{seed}"
        if given.table:
            continue
        print(f"headline: {arm}, seed {seed}: {number} of {len(todo)} runs done", flush=True)
        if not (place / "model").is_dir():
            _lm2("train", "tiny", "--task", "babilong", "--memory", arm, "--only", size.tasks, "--data", given.data, "--out", place, "--steps", size.steps,
                 "--stages", size.stages, "--seed", seed, "--threads", given.threads)  # fmt: skip
        for measure in size.measures:
            result = place / f"eval-{measure.lengths.split(',')[0]}"
            if not _whole(result / "result.json"):
                result.mkdir(exist_ok=True)
                _lm2("eval", place / "model", "--task", "babilong", "--data", given.data, "--only", size.tasks, "--lengths", measure.lengths,
                     "--samples", measure.samples, "--threads", given.threads, "--out", result)  # fmt: skip
        write(given.out, given.size, size)
    write(given.out, given.size, size)
    print(f"headline: {given.out / 'table.md'}", flush=True)


def _same(out: Path, name: str, size: Size) -> None:
    """Note what a folder's comparison is; refuse to go on with another one."""
    out.mkdir(parents=True, exist_ok=True)
    file, record = out / "comparison.json", json.loads(json.dumps({"size": name, **size._asdict()}))
    if file.exists():
        have = json.loads(file.read_text(encoding="utf-8"))
        if have != record:
            raise SystemExit(f"{file} is of size {have.get('size')} with other settings than {name} has now: give another --out")
    body = json.dumps(record, indent=2).encode()
    write_file(file, lambda f: f.write(body))


def _lm2(*args: object) -> None:
    """Run `lm2` with its own output; end with its exit code where it fails or is stopped."""
    done = subprocess.run([*LM2, *map(str, args)], env=os.environ | {"OMP_NUM_THREADS": str(args[args.index("--threads") + 1])})
    if done.returncode:
        raise SystemExit(done.returncode)


def _whole(file: Path) -> bool:
    return file.is_file() and bool(json.loads(file.read_text(encoding="utf-8"))["whole"])


def write(out: Path, name: str, size: Size) -> None:
    """Write table, figure and figures in JSON of what was measured so far."""
    runs: dict[str, list[list[Found]]] = {}
    about: dict[str, dict[str, object]] = {}
    for place in sorted(out.glob("*-*")):
        arm, _, seed = place.name.rpartition("-")
        cells = [cell for file in sorted(place.glob("eval-*/result.json")) for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]]
        if arm not in ARMS or not seed.isdecimal() or not (place / "model").is_dir() or not cells:
            continue
        runs.setdefault(arm, []).append([Found(c["name"], c["at"], c["label"], c["right"], c["count"], c["floor"]["share"]) for c in cells])
        about[arm] = facts(place)
    found = {arm: merged(runs[arm]) for arm in ARMS if arm in runs}
    title = f"`python benchmarks/headline.py --size {name} --data DIR --out OUT`: {size.steps} steps of {size.stages}"
    text = markdown(title, found, about, {arm: len(r) for arm, r in runs.items()})
    write_file(out / "table.md", lambda f: f.write(text.encode()))
    body = json.dumps({"about": about, "cells": {a: [c._asdict() for c in cells] for a, cells in found.items()}}, indent=2).encode()
    write_file(out / "results.json", lambda f: f.write(body))
    if found:
        draw(found, out / "headline.png")


def facts(place: Path) -> dict[str, object]:
    """A run's parameters, the bytes it carries, the tokens it sees at a time, and its last loss."""
    header = read_header(place / "model" / "model.safetensors")
    count = sum(math.prod(tensor.shape) for tensor in header.tensors.values())
    config = json.loads((place / "model" / "config.json").read_text(encoding="utf-8"))
    if "baseline" in config:
        state = 4 * config["baseline"]["tokens"] * config["hidden_size"]
        inside = config["baseline"]["segment"]
    else:
        state = 4 * len(config["memory"]["layers"]) * config["memory"]["slots"] * config["hidden_size"]
        inside = config["memory"]["chunk"]
    with open(place / "curves.csv", encoding="utf-8", newline="") as f:
        last = list(csv.DictReader(f))[-1]
    return {"parameters": count, "state_bytes": state, "window": inside, "loss": float(last["loss"])}


if __name__ == "__main__":
    main()
