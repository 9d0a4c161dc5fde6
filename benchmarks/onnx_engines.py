"""One engine in a process of its own, for onnx_speed.py: reads a job a line, answers with a line that begins with @.

A job is {"prompt": [ids], "steps": n, "cold": steps of them}; the answer {"prefill": seconds, "decode": seconds, "cold": seconds, "tokens": [greedy ids],
"resident": bytes}. Decoding is `steps` calls of one token after the prompt, each with its likeliest token found, as a sampler at temperature 0 does; then come
the cold ones, before each of which a walk over a large buffer takes the weights out of every cache. Before the first job comes {"ready": facts}.
"""

import json
import sys
import time
from pathlib import Path

FLUSH_BYTES = 640 << 20  # more than any cache that a benchmark ran on


class Lm2:
    """LM2's onnx backend. With memory layers, a full chunk is written first, so every token reads every row; a prefill includes what reading the bank into
    the chunk costs."""

    def __init__(self, path: Path, threads: int):
        import numpy as np

        from lm2.runtime.backend import BackendOptions, open_backend

        opened = time.perf_counter()
        self.backend = b = open_backend("onnx", path, BackendOptions(device="cpu", threads=threads))
        opened = time.perf_counter() - opened
        ids = np.random.default_rng(0).integers(0, b.config.vocab_size, b.config.memory.chunk)
        _, chunk = b.extend(ids, b.start())
        began = time.process_time()
        self.state = b.commit(chunk)
        end_ms = 1e3 * (time.process_time() - began)  # of a full chunk, all threads: no decoding step below pays for it
        self.facts = {
            "memory_layers": len(b.config.memory.layers),
            "rows": b.config.memory.slots,
            "chunk_end_ms": round(end_ms, 1),
            "load_s": opened,
        }

    def prefill(self, ids: list[int]) -> int:
        self.chunk = self.backend.start(1, self.state)
        return self.step(*ids)

    def step(self, *ids: int) -> int:
        logits, self.chunk = self.backend.extend(ids, self.chunk)
        return int(logits[0].argmax())


class Genai:
    """onnxruntime-genai's generator, greedy."""

    def __init__(self, path: Path, threads: int):
        import onnxruntime_genai as og

        self.og = og
        config = og.Config(str(path))
        never = {"model": {"eos_token_id": 49151, "decoder": {"session_options": {"intra_op_num_threads": threads}}}}
        config.overlay(json.dumps(never))
        opened = time.perf_counter()
        self.model = og.Model(config)
        self.facts = {"version": og.__version__, "load_s": time.perf_counter() - opened}

    def prefill(self, ids: list[int]) -> int:
        params = self.og.GeneratorParams(self.model)
        params.set_search_options(max_length=512, do_sample=False)
        self.generator = self.og.Generator(self.model, params)
        self.generator.append_tokens(ids)
        return self.step()

    def step(self, *_ids: int) -> int:
        self.generator.generate_next_token()
        return int(self.generator.get_next_tokens()[0])


class Flush:
    """Reads more memory than caches hold. Its buffer is made when it is first needed, so that an engine's own memory can be read before."""

    buffer = None

    def __call__(self) -> None:
        import numpy as np

        if self.buffer is None:
            self.buffer = np.ones(FLUSH_BYTES // 8, np.int64)
        self.buffer.sum()


def resident() -> int:
    """Bytes of this process in memory; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS")), 0)


def main() -> None:
    kind, path, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    clock = time.process_time if threads == 1 else time.perf_counter
    began = time.perf_counter()
    engine = {"lm2": Lm2, "genai": Genai}[kind](path, threads)
    engine.facts["load_s"] = round(engine.facts.get("load_s", time.perf_counter() - began), 3)
    flush = Flush()
    print("@" + json.dumps({"ready": engine.facts}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        began = clock()
        token = engine.prefill(job["prompt"])
        prefilled = clock()
        tokens = [token]
        for _ in range(job["steps"]):
            token = engine.step(token)
            tokens.append(token)
        decoded, held, cold = clock() - prefilled, resident(), 0.0
        for _ in range(job.get("cold", 0)):
            flush()
            start = clock()
            token = engine.step(token)
            cold += clock() - start
        flush.buffer = None  # many engines wait at once
        answer = {"prefill": prefilled - began, "decode": decoded, "cold": cold, "tokens": tokens, "resident": held}
        print("@" + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
