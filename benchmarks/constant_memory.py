"""Reads a text of 100,000 tokens through a session and measures resident memory and time per token all along.

    python benchmarks/constant_memory.py [--model smollm2] [--tokens 100000] [--backend torch] [--window 2048] [--out docs]

The first third is compared with the last: a shorter stretch than the beat of steps and slides (14,336 tokens for steps of 2,048 and slides
of 1,792) would compare one phase of it with another. Prints the figures and their gates, writes constant_memory.json and constant_memory.png. Exit code 1 when a gate is missed.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

from common import command, long_text, machine, versions

GROWTH_GATE, SLOWDOWN_GATE = 1.05, 1.10


def measure(model: str, tokens: int, backend: str, window: int | None = None) -> dict:
    """Feed `tokens` tokens; returns the figures. Times are per token newly read, what a slide carries over included in the cost."""
    import psutil

    import lm2

    loaded = lm2.load(model, backend=backend)
    session = lm2.Session(loaded, seed=0, window=window)
    text = long_text()
    while len(loaded.encode(text)) < tokens:
        text += "\n\n" + text
    ids = loaded.encode(text)[:tokens]
    text = loaded.text.decode(ids)
    process = psutil.Process()
    counts, rss, times = [], [], []
    last = time.perf_counter()

    def note(count: int) -> None:
        nonlocal last
        now = time.perf_counter()
        counts.append(count)
        rss.append(process.memory_info().rss)
        times.append(now - last)
        last = now
        print(f"\r{count:>7} tokens  {rss[-1] / 1e6:7.1f} MB", end="", file=sys.stderr, flush=True)

    read = session.read(text, "benchmark", chat=False, progress=note)
    print(file=sys.stderr)
    per_token = [dt / (b - a) for dt, a, b in zip(times, [0, *counts], counts, strict=False)]
    size = session.feeder.size
    first = next(i for i, c in enumerate(counts) if c >= size + 1000)  # a window and its buffers are there
    later = per_token[first:]
    third = max(1, len(later) // 3)
    resident = rss[first:]
    early, late = max(resident[:third]), max(resident[-third:])
    early_ms, late_ms = (1e3 * statistics.mean(part) for part in (later[:third], later[-third:]))
    config, about = loaded.config, loaded.backend.describe(size)
    kv = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    return {
        "command": command(), "machine": machine(), "versions": versions("lm2", "torch", "mlx", "numpy"), "model": loaded.name,
        "backend": backend, "tokens": read, "tokens_written": session.at.written, "window": size, "state_bytes": about.state_bytes, "window_bytes": about.window_bytes,
        "measured_from": counts[first], "rss_at_start": rss[first], "rss_first_third": early, "rss_last_third": late, "rss_ratio": late / early, "rss_gate": GROWTH_GATE,
        "seconds": sum(times), "tokens_per_second": read / sum(times),
        "first_third_ms": early_ms, "last_third_ms": late_ms, "time_ratio": late_ms / early_ms, "time_gate": SLOWDOWN_GATE,
        "kv_cache_bytes_per_token": kv, "counts": counts, "rss": rss, "ms_per_token": [1e3 * t for t in per_token],
    }  # fmt: skip


def plot(r: dict, path: Path) -> None:
    """Resident memory above, time per token below; dashed, what an ordinary float32 KV cache would add (computed, not measured)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, (top, bottom) = plt.subplots(2, 1, figsize=(8, 5.4), sharex=True)
    x = [c / 1000 for c in r["counts"]]
    growing = [(r["rss_at_start"] + r["kv_cache_bytes_per_token"] * max(0, c - r["window"])) / 1e9 for c in r["counts"]]
    top.plot(x, growing, "--", color="#b0553a", label="with a growing KV cache (computed)")
    top.plot(x, [b / 1e9 for b in r["rss"]], color="#1f5fa8", lw=2, label=f"LM2 session (measured): peak of last third / first third: {r['rss_ratio']:.3f}")
    top.set_ylabel("resident memory, GB")
    top.set_ylim(0)
    top.legend(frameon=False, loc="upper left")
    window = max(1, len(x) // 60)
    smooth = [statistics.mean(r["ms_per_token"][max(0, i - window) : i + window + 1]) for i in range(len(x))]
    bottom.plot(x, r["ms_per_token"], color="#9fbfe0", lw=0.8)
    bottom.plot(x, smooth, color="#1f5fa8", lw=2, label=f"last third / first third: {r['time_ratio']:.3f}")
    bottom.set_ylabel("ms per token")
    bottom.set_xlabel("thousand tokens read")
    bottom.set_ylim(0, 2.2 * statistics.median(r["ms_per_token"]))
    bottom.legend(frameon=False, loc="upper left")
    for ax in (top, bottom):
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25)
    top.set_title(f"{r['model']}, {r['backend']} on CPU: {r['tokens']:,} tokens, window of {r['window']:,}, {r['state_bytes'] / 1e6:.1f} MB of state", fontsize=11)
    fig.tight_layout()
    fig.savefig(path, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--window", type=int, default=None, help="the model's by default")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "docs")
    a = parser.parse_args()
    r = measure(a.model, a.tokens, a.backend, a.window)
    a.out.mkdir(parents=True, exist_ok=True)
    (a.out / "constant_memory.json").write_text(json.dumps({k: v for k, v in r.items() if not isinstance(v, list)}, indent=1) + "\n")
    plot(r, a.out / "constant_memory.png")
    ok_rss, ok_time = abs(r["rss_ratio"] - 1) < GROWTH_GATE - 1, r["time_ratio"] <= SLOWDOWN_GATE
    print(f"{r['tokens']} tokens in {r['seconds']:.0f} s ({r['tokens_per_second']:.0f}/s), window {r['window']}, {r['tokens_written']} written; {r['machine']}; {r['versions']}")
    print(f"resident, peak from {r['measured_from']} tokens on: first third {r['rss_first_third'] / 1e6:.1f} MB, last third {r['rss_last_third'] / 1e6:.1f} MB: ratio {r['rss_ratio']:.4f} (gate {GROWTH_GATE}) {'PASS' if ok_rss else 'FAIL'}")
    print(f"first third {r['first_third_ms']:.3f} ms/token, last third {r['last_third_ms']:.3f}: ratio {r['time_ratio']:.3f} (gate {SLOWDOWN_GATE}) {'PASS' if ok_time else 'FAIL'}")
    return 0 if ok_rss and ok_time else 1


if __name__ == "__main__":
    sys.exit(main())
