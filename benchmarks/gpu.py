"""Every CUDA figure of this project in one run of under ten minutes, on a machine with torch, triton and this repository.

    python benchmarks/gpu.py [--out build/gpu] [--only SECTION ...] [--again] [--seed N] [--toy] [--floors] [--cpu]

Sections that are done are kept in OUT/gpu.json and not run again, so a run that was cut off goes on where it stopped; OUT/gpu.md has the tables. A section that
fails is written down and the next one runs; the exit code is then 1. `--toy` runs everything on a CPU through Triton's interpreter, at sizes that
mean nothing, to see that it runs. `--cpu` runs the sections about agreement with float64 at full size, with plain PyTorch on a CPU. `--floors` prints what each figure has to move at the least, computed from shapes, and measures nothing.
"""

import argparse
import importlib
import importlib.util
import json
import os
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SECTIONS = {
    "environment": ("gpu_others", "environment"), "library": ("gpu_others", "library"), "check": ("gpu_kernels", "check"), "copy": ("gpu_kernels", "copy"),
    "update": ("gpu_kernels", "update"), "parity": ("gpu_parity", "parity"), "drift": ("gpu_parity", "drift"), "decode": ("gpu_decode", "decode"),
    "prefill": ("gpu_decode", "prefill"), "compile": ("gpu_decode", "compiled"), "onnxruntime": ("gpu_others", "onnxruntime"), "mlx": ("gpu_others", "mlx"),
}  # fmt: skip
ON_A_CPU = ("environment", "parity", "drift")
NEEDS = {"update": "copy", "decode": "copy"}


def find_package() -> None:
    """Make `import lm2` mean this repository when it is not installed; the tests' inputs and this folder are importable too."""
    sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests")]
    if importlib.util.find_spec("lm2") is None:
        spec = importlib.util.spec_from_file_location("lm2", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
        assert spec and spec.loader
        sys.modules["lm2"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["lm2"])


def report(done: dict, toy: bool) -> str:
    """OUT/gpu.md."""
    from common import table

    lines = ["# CUDA figures", ""]
    if toy:
        lines += ["**Toy sizes on a CPU through an interpreter: this shows that the script runs. No time in it means anything.**", ""]
    judged = [j for s in done.values() for j in s.get("judged", [])]
    if judged:
        lines += [table(["what", "measured", "gate", "met"], [[*map(str, j[:3]), "yes" if j[3] else "**no**"] for j in judged]), ""]
    for name, s in done.items():
        lines += [f"## {name}", f"{s['state']}, {s['seconds']:.1f} s" + (f": {s['why']}" if s.get("why") else ""), ""]
        if s.get("rows"):
            lines += [table(s["header"], s["rows"]), ""]
        lines += [f"{note}\n" for note in s.get("notes", [])]
    return "\n".join(lines) + "\n"


def run_section(name: str, bench) -> dict:
    """One section's record: state done, skipped or failed."""
    from gpu_bench import Skipped

    t = time.perf_counter()
    try:
        module, function = SECTIONS[name]
        record = {"state": "done", **asdict(getattr(importlib.import_module(module), function)(bench))}
    except Skipped as reason:
        record = {"state": "skipped", "why": str(reason)}
    except Exception as error:
        traceback.print_exc()
        record = {"state": "failed", "why": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
    return record | {"seconds": time.perf_counter() - t}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--again", action="store_true", help="run sections that are done as well")
    parser.add_argument("--seed", type=int, help="of all inputs; drawn from the clock by default, printed, and kept for a run that goes on")
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--floors", action="store_true")
    parser.add_argument("--cpu", action="store_true")
    a = parser.parse_args()
    find_package()
    if a.floors:
        import gpu_floors
        from common import table

        print(table(gpu_floors.HEADER, gpu_floors.floors()))
        return 0
    if a.toy:
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton
    import torch
    from gpu_bench import Bench

    if a.cpu:
        a.only = [n for n in a.only if n in ON_A_CPU]
    if not a.toy and not a.cpu and not torch.cuda.is_available():
        print(
            "no CUDA device: nothing to measure (--toy runs everything on a CPU, --cpu what is not about speed, --floors prints what is computed)",
            file=sys.stderr,
        )
        return 2
    out = a.out or ROOT / "build" / ("gpu-toy" if a.toy else "gpu-cpu" if a.cpu else "gpu")
    out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("LM2_HOME", str(out / "home"))
    kept = out / "gpu.json"
    record = json.loads(kept.read_text()) if kept.exists() else {}
    device = torch.device("cpu" if a.toy or a.cpu else "cuda")
    of = {"toy": a.toy, "device": device.type if device.type == "cpu" else torch.cuda.get_device_name()}
    if record.get("of") != of:
        record = {"of": of, "seed": a.seed if a.seed is not None else int(time.time()), "sections": {}}
    done, seed = record["sections"], a.seed if a.seed is not None else record["seed"]
    bench = Bench(device, a.toy, seed, out)
    print(f"seed {seed}, {of['device']}, {kept}")
    wanted = [n for n in SECTIONS if n in a.only or any(NEEDS.get(o) == n and done.get(n, {}).get("state") != "done" for o in a.only)]
    for earlier in done.values():
        bench.facts.update(earlier.get("facts", {}))
    for name in wanted:
        if name in done and done[name]["state"] == "done" and not a.again:
            print(f"{name}: done before")
        else:
            done[name] = run_section(name, bench)
            why = f" ({done[name]['why']})" if done[name].get("why") else ""
            print(f"{name}: {done[name]['state']} in {done[name]['seconds']:.1f} s{why}", flush=True)
            bench.free()
        bench.facts.update(done[name].get("facts", {}))
        record["sections"] = done = {n: done[n] for n in SECTIONS if n in done}
        kept.write_text(json.dumps(record, indent=1) + "\n")
        (out / "gpu.md").write_text(report(done, a.toy), encoding="utf-8")
    print(f"{sum(s['seconds'] for s in done.values()):.0f} s in all; {out / 'gpu.md'}")
    return 1 if any(done[n]["state"] == "failed" for n in wanted) else 0


if __name__ == "__main__":
    sys.exit(main())
