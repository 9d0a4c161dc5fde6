"""Prefill and decode of LM2's ONNX exports, memory on and off, beside onnxruntime-genai and llama.cpp on the same backbone, interleaved in one run.

    python benchmarks/onnx_speed.py [--threads 1,2] [--repeats 5] [--prompt 256] [--decode 128] [--cold 8] [--engines lm2,avx2,genai,llama] [--out docs]

Makes what it needs in build/onnx_speed (about 5 GB; onnxruntime-genai and node-llama-cpp come from their package registries) and says what it had to
skip. Every engine is a process of its own, all are loaded, and in each round every one does a prefill and a decode in turn; medians count, and the ratio to
genai at equal bits is the median of the rounds' ratios. `cold`: tokens after those, before each of which a walk over a large buffer takes the weights out of the
caches. `avx2` is lm2's int4 with its kernels held to AVX2 (ONNX Runtime's own take what they find), `plain` lm2 exported with --plain. With one thread the clock is the process's own processor time, so that a busy machine changes
little; with more it is the wall's, and the machine should be quiet. Writes onnx_speed.json and onnx_speed.png to --out and prints the tables.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import onnx_files as files
from common import command, long_text, machine, table, versions

HERE = Path(__file__).parent
AVX2 = {"LM2_QLINEAR": "avx2", "LM2_ATTENTION": "avx2"}
MEASURES = {"prefill": "prefill", "decode": "decode", "cold": "decode, cold"}


class Engine:
    """A child process that runs one engine. Raises files.Missing when it does not start or dies."""

    def __init__(self, label: str, bits: str, words: list, bytes_: int, **more):
        self.label, self.bits, self.bytes, self.runs = label, bits, bytes_, []
        self.process = subprocess.Popen(
            [str(w) for w in words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more
        )
        self.facts = self._answer()["ready"]

    def _answer(self) -> dict:
        assert self.process.stdout is not None and self.process.stderr is not None
        for line in self.process.stdout:
            if line.startswith("@"):
                return json.loads(line[1:])
        lines = [line for line in self.process.stderr.read().splitlines() if line.strip()] or ["no message"]
        raise files.Missing(f"{self.label}: {lines[-1][:200]}")

    def run(self, prompt: list[int], steps: int, cold: int = 0) -> dict:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"prompt": prompt, "steps": steps, "cold": cold}) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        if self.process.stdin:
            self.process.stdin.close()
        self.process.wait(timeout=60)


def plans(root: Path, wanted: list[str], precisions: list[str]) -> tuple[list[tuple], list[str]]:
    """(label, bits, command without threads, bytes, environment) of every engine that can be had, and a line for each that cannot."""
    paths, found, skipped = files.backbone(root), [], []

    def attempt(label, make):
        try:
            found.append(make())
        except files.Missing as error:
            skipped.append(f"{label}: {error}")
            print(f"skipped: {skipped[-1]}", file=sys.stderr)

    def lm2(which, precision, name="lm2", plain=False, **environment):
        path = files.exported(root, paths[which], precision, plain)
        words = [sys.executable, HERE / "onnx_engines.py", "lm2", path]
        return f"{name}, memory {which}", precision, words, files.size(path), {"env": os.environ | environment}

    def genai(precision):
        path = files.genai_model(root, paths["hf"], precision)
        words = [sys.executable, HERE / "onnx_engines.py", "genai", path]
        return "onnxruntime-genai", precision, words, files.size(path), {"env": os.environ | {"PYTHONPATH": str(files.genai_package(root))}}

    def llama():
        folder = files.llama_package(root)
        return "llama.cpp", "Q4_1", ["node", "onnx_llama.mjs", paths["gguf"].absolute()], files.size(paths["gguf"]), {"cwd": folder}

    for precision in precisions:
        if "lm2" in wanted:
            for which in ("off", "on"):
                attempt(f"lm2, memory {which}, {precision}", lambda w=which, p=precision: lm2(w, p))
        if "avx2" in wanted and precision == "int4":
            for which in ("off", "on"):
                attempt(f"lm2 with AVX2, memory {which}", lambda w=which: lm2(w, "int4", "lm2 with AVX2", **AVX2))
        if "plain" in wanted and precision != "fp32":
            attempt(f"lm2 --plain, {precision}", lambda p=precision: lm2("off", p, "lm2 --plain", True))
        if "genai" in wanted:
            attempt(f"onnxruntime-genai {precision}", lambda p=precision: genai(p))
    if "llama" in wanted:
        attempt("llama.cpp", llama)
    return found, skipped


def measure(
    found: list[tuple], threads: int, repeats: int, prompt: list[int], steps: int, cold: int, skipped: list[str], minutes: float
) -> list[dict]:
    """Rounds of every engine in turn, the order reversed every other round; none begins after `minutes`. One short run first, uncounted."""
    engines = []
    for label, bits, words, size, more in found:
        try:
            engines.append(Engine(label, bits, [*words, threads], size, **more))
            first = engines[-1].run(prompt, min(steps, 16))
            engines[-1].tokens, engines[-1].resident = first["tokens"], first["resident"]
        except files.Missing as error:
            skipped.append(str(error))
            print(f"skipped: {error}", file=sys.stderr)
    print(f"{threads} thread(s), {len(engines)} engines ready", file=sys.stderr, flush=True)
    began = time.monotonic()
    for r in range(repeats):
        if r and time.monotonic() - began > 60 * minutes:
            break
        for engine in engines if r % 2 == 0 else reversed(engines):
            engine.runs.append({k: v for k, v in engine.run(prompt, steps, cold).items() if k != "tokens"})
        print(f"{threads} thread(s), round {r + 1}/{repeats}", file=sys.stderr, flush=True)
    for engine in engines:
        engine.close()
    return [
        {
            "engine": e.label, "bits": e.bits, "threads": threads, "bytes": e.bytes, "resident": e.resident, "facts": e.facts,
            "first_tokens": e.tokens, "prefill": [len(prompt) / x["prefill"] for x in e.runs],
            "decode": [steps / x["decode"] for x in e.runs], "cold": [cold / x["cold"] for x in e.runs if cold],
        }
        for e in engines
    ]  # fmt: skip


def rows(results: list[dict], what: str, threads: int) -> list[list[str]]:
    """A line per engine: median tokens/s, lowest and highest, and the median of the rounds' ratios to genai at equal bits."""
    mine = [r for r in results if r["threads"] == threads and r.get(what)]
    other = {r["bits"]: r[what] for r in mine if r["engine"] == "onnxruntime-genai"}
    out = []
    for r in mine:
        median = statistics.median(r[what])
        base = other.get(r["bits"])
        ratio = f"{statistics.median(a / b for a, b in zip(r[what], base, strict=True)):.2f}x" if base else ""
        spread = f"{min(r[what]):.1f} - {max(r[what]):.1f}"
        held, load = f"{r.get('resident', 0) / 1e6:.0f}", f"{r['facts'].get('load_s', 0):.2f}"
        out.append([r["engine"], r["bits"], f"{r['bytes'] / 1e6:.0f}", held, load, f"{median:.1f}", spread, ratio])
    return out


def plot(report: dict, file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    colours = {"lm2, memory off": "#1f5fa8", "lm2, memory on": "#6aa5de", "onnxruntime-genai": "#b0553a", "llama.cpp": "#7a7a7a"}
    colours |= {
        f"{name}, memory {which}": colour
        for name in ("lm2 with AVX2", "lm2 --plain")
        for which, colour in (("off", "#3f8f5f"), ("on", "#8fc9a5"))
    }
    counts = sorted({r["threads"] for r in report["results"]})
    figure, axes = pyplot.subplots(len(counts), 2, figsize=(10, 3.2 * len(counts)), squeeze=False)
    for line, threads in zip(axes, counts, strict=True):
        for axis, what in zip(line, ("prefill", "decode"), strict=True):
            mine = [r for r in report["results"] if r["threads"] == threads]
            names = [f"{r['engine']} {r['bits']}" for r in mine]
            axis.barh(names, [statistics.median(r[what]) for r in mine], color=[colours[r["engine"]] for r in mine])
            axis.invert_yaxis()
            axis.set_title(f"{what}, {threads} thread{'s' if threads > 1 else ''}, tokens/s", fontsize=10)
            axis.tick_params(labelsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=60, help="begin no round later than this, for each number of threads")
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--decode", type=int, default=128)
    parser.add_argument("--cold", type=int, default=8, help="tokens of each round that find nothing in the caches; 0: none")
    parser.add_argument("--engines", default="lm2,avx2,genai,llama", help="also: plain")
    parser.add_argument("--precisions", default=",".join(files.PRECISIONS))
    parser.add_argument("--folder", type=Path, default=Path("build/onnx_speed"), help="where models and packages are made and kept")
    parser.add_argument("--add", action="store_true", help="keep what onnx_speed.json in --out says of other numbers of threads")
    parser.add_argument("--prepare", action="store_true", help="make what is missing and stop")
    parser.add_argument("--again", action="store_true", help="make lm2's exports again, for a graph that has changed since")
    parser.add_argument("--out", type=Path, default=None, help="write onnx_speed.json and onnx_speed.png here")
    a = parser.parse_args()
    if a.prompt + a.decode + a.cold >= 512:
        parser.error("--prompt, --decode and --cold must fit into a chunk of 512 tokens")
    a.folder.mkdir(parents=True, exist_ok=True)
    if a.again:
        files.forget_exports(a.folder)
    found, skipped = plans(a.folder.absolute(), a.engines.split(","), a.precisions.split(","))
    if a.prepare:
        return 0
    from lm2.models.text.tokenizer import Tokenizer

    prompt = list(Tokenizer.load(a.folder / "on").encode(long_text()[: 8 * a.prompt]))[: a.prompt]
    counts, results = [int(n) for n in a.threads.split(",")], []
    if a.out:
        a.out.mkdir(parents=True, exist_ok=True)
    if a.add and a.out and (a.out / "onnx_speed.json").is_file():
        before = json.loads((a.out / "onnx_speed.json").read_text())
        if (before["prompt"], before["decode"]) == (a.prompt, a.decode):
            results = [r for r in before["results"] if r["threads"] not in counts]
    for threads in counts:
        results += measure(found, threads, a.repeats, prompt, a.decode, a.cold, skipped, a.minutes)
        report = {
            "command": command(), "machine": machine(), "versions": versions("lm2", "onnxruntime", "numpy"), "prompt": a.prompt,
            "decode": a.decode, "rounds": {r["threads"]: len(r["decode"]) for r in results}, "skipped": skipped, "results": results,
        }  # fmt: skip
        if a.out:
            (a.out / "onnx_speed.json").write_text(json.dumps(report, indent=1) + "\n")
    print(
        f"`{report['command']}` on {report['machine']}; {report['versions']}, onnxruntime-genai {files.GENAI}, node-llama-cpp {files.LLAMA}; medians of interleaved rounds (threads: rounds {report['rounds']})\n"
    )
    for threads in sorted({r["threads"] for r in results}):
        for what, text in MEASURES.items():
            print(f"{text} {dict(prefill=a.prompt, decode=a.decode, cold=a.cold)[what]}, {threads} thread(s)\n")
            header = ["engine", "weights", "MB", "MB in memory", "s to load", "tokens/s", "lowest - highest", "to genai"]
            print(table(header, rows(results, what, threads)) + "\n")
    for line in skipped:
        print(f"skipped: {line}")
    if a.out:
        plot(report, a.out / "onnx_speed.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
