"""Tokens a second of several windows stepped together in one run of an exported model, beside one window alone.

    python benchmarks/onnx_together.py FOLDER [FOLDER ...] [--windows 1 4 16] [--threads 1] [--rounds 8] [--prompt 20]

Windows read `--prompt` tokens and three more each, so that all stand at positions of their own, with a memory that was written. Rounds alternate between the
numbers of windows, four steps each. With one thread the clock is the thread's own processor time, with more it is the wall's. Before anything is timed each
window's logits are compared with its own alone: more than 1e-5 of their size ends the benchmark.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
from common import command, machine, require_close, table, versions

STEPS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--windows", type=int, nargs="+", default=[1, 4, 16])
    for name, default in (("threads", 1), ("rounds", 8), ("prompt", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    rows = [row for folder in given.folders for row in measured(folder, given)]
    print(f"`{command()}`  \n{machine()}; {versions('onnxruntime', 'numpy')}; {given.threads} thread(s)\n")
    print(table(["file", "windows", "tokens/s, median", "best", "times one, median of rounds", "the bits of each alone"], rows))


def measured(folder: Path, given: argparse.Namespace) -> list[list[str]]:
    """A line for each number of windows."""
    from lm2.runtime.backend import BackendOptions, one_by_one
    from lm2.runtime.backends.onnx_backend import open_model

    backend = open_model(folder, BackendOptions(device="cpu", threads=given.threads))
    ids = np.arange(given.prompt + 3 * max(given.windows)) * 37 % (backend.config.vocab_size - 300) + 300
    state = backend.commit(backend.extend(ids[: backend.config.memory.chunk], backend.start())[1])
    windows = [backend.extend(ids[: given.prompt + 3 * i], backend.start(1, state))[1] for i in range(max(given.windows))]
    got, want = backend.step([5] * len(windows), windows)[0], one_by_one(backend, [5] * len(windows), windows)[0]
    require_close(f"{folder}: a window beside others", got, want, 1e-5)
    clock = time.thread_time if given.threads == 1 else time.perf_counter
    times: dict[int, list[float]] = {n: [] for n in given.windows}
    for _ in range(given.rounds):
        for n, found in times.items():
            now = windows[:n]
            for i in range(STEPS):
                began = clock()
                now = backend.step([i + 5] * n, now)[1]
                found.append(clock() - began)
    first = times[given.windows[0]]
    out = []
    for n, found in times.items():
        ratio = statistics.median(n * a / (given.windows[0] * b) for a, b in zip(first, found, strict=True))
        out.append([folder.name, str(n), f"{n / statistics.median(found):.1f}", f"{n / min(found):.1f}", f"{ratio:.2f}", str(np.array_equal(got, want))])
    return out


if __name__ == "__main__":
    main()
