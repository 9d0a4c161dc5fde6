"""Fuzzes the readers of files from outside: `python benchmarks/reliability/fuzz.py session --inputs 10000 --seed 1`.

Every input is made from the seed and its number alone, so that `--only NUMBER` makes it again. No crash, no hang over 5 seconds, no growth over
1 GiB, no error that is not one typed line, and nothing accepted that is wrong: what that means for a format is in targets/. Linux and macOS.
"""

import random
import sys
from pathlib import Path

import kit
from minimise import minimise
from targets import TARGETS, Target, open_target
from watch import Outcome, watch


def make(target: Target, seed: int, index: int) -> bytes:
    """Input number `index`."""
    rng = random.Random(f"{target.name}/{seed}/{index}")
    data = rng.choice(target.seeds)
    for _ in range(rng.choice((1, 1, 2, 3))):
        data = target.mutate(rng, data)
    return data


def fuzz(target: Target, count: int, seed: int) -> Outcome:
    """Run inputs 0 to count - 1."""
    for i, data in enumerate(target.seeds):
        kit.need(target.check(data), f"seed {i} of {target.name} is refused: nothing is tested")
    return watch(count, lambda index: target.check(make(target, seed, index)))


def main() -> int:
    parser = kit.arguments(__doc__ or "", list(TARGETS), "inputs", 10000)
    parser.add_argument("--only", type=int, help="run this input alone, in this process, and show what it does")
    parser.add_argument("--keep", type=Path, help="folder to keep what was found in, made small")
    a = parser.parse_args()
    failed = 0
    for name in kit.chosen(a.names, list(TARGETS)):
        with kit.scratch() as place, open_target(name, place) as target:
            if a.only is not None:
                data = make(target, a.seed, a.only)
                sys.stdout.buffer.write(data[:4000] + b"\n")
                sys.stdout.flush()
                print("accepted" if target.check(data) else f"refused: {target.said}")
                continue
            out = fuzz(target, a.count, a.seed)
            print(f"{name}: {out.inputs} inputs, seed {a.seed}: {out.accepted} accepted and right, {out.refused} refused, {len(out.findings)} findings; "
                  f"slowest {out.slowest:.2f} s, at most {out.growth_mib} MiB more; {out.seconds:.0f} s", flush=True)  # fmt: skip
            failed += bool(out.findings)
            for key, index, text in out.findings[:40]:
                print(f"--- {name} input {index}: {key}\n{text}", flush=True)
                if a.keep:
                    a.keep.mkdir(parents=True, exist_ok=True)
                    (a.keep / f"{name}-{a.seed}-{index}").write_bytes(minimise(target, make(target, a.seed, index), key))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
