"""Decode and prefill of the torch backend with the memory on, against transformers on the same weights, interleaved in one run.

    python benchmarks/torch_speed.py [--model smollm2] [--threads 0] [--repeats 5]

Each repeat times lm2, then transformers; the median of the pairwise ratios is what counts. The memory is written (one full chunk) before
timing, so every token reads all rows of every memory layer; lm2's prefill includes computing the bank's keys and values.
"""

import argparse
import statistics
import sys
import time

from common import command, machine, require_close, table, versions

PROMPTS, DECODE = (256, 500), 128


def reference(folder, model_config):
    """transformers' LlamaForCausalLM holding the backbone's weights of a model folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from lm2.models.layout import open_folder
    from lm2.models.weights import load_model, slots_of

    ours = {"memory", "model_type", "architectures", "dtype", "name", "rope_scaling", "rope_theta"}
    llama = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in model_config.to_dict().items() if k not in ours})).eval()
    weights = {n: t for n, t in slots_of(load_model(open_folder(folder))) if ".memory." not in n}
    if model_config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    with torch.no_grad():
        llama.load_state_dict(weights)
        llama.tie_weights()
    return llama


def time_ours(backend, memory, ids, steps):
    import numpy as np

    t0 = time.perf_counter()
    chunk = backend.start(1, memory)
    logits, chunk = backend.extend(ids, chunk)
    t1 = time.perf_counter()
    room = backend.config.memory.chunk - len(ids)
    for i in range(steps):
        if i and i % room == 0:
            chunk = backend.rewind(chunk, len(ids))
        logits, chunk = backend.extend(np.array([int(logits[0].argmax())]), chunk)
    return len(ids) / (t1 - t0), steps / (time.perf_counter() - t1)


def time_theirs(llama, ids, steps):
    import torch

    with torch.inference_mode():
        prompt = torch.as_tensor(ids)[None]
        t0 = time.perf_counter()
        out = llama(input_ids=prompt, attention_mask=torch.ones_like(prompt), use_cache=True, logits_to_keep=1)
        t1 = time.perf_counter()
        for _ in range(steps):
            out = llama(input_ids=out.logits[:, -1:].argmax(-1), past_key_values=out.past_key_values, use_cache=True)
        return len(ids) / (t1 - t0), steps / (time.perf_counter() - t1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=5)
    a = parser.parse_args()
    import numpy as np
    import torch

    import lm2

    model = lm2.load(a.model, backend="torch", device="cpu", dtype="float32", threads=a.threads)
    backend = model.backend
    llama = reference(model.path, model.config)
    rng = np.random.default_rng(0)
    draw = lambda n: rng.integers(0, model.config.vocab_size, n)  # noqa: E731
    _, chunk = backend.extend(draw(model.config.memory.chunk), backend.start(1))
    memory = backend.commit(chunk)
    ids = draw(PROMPTS[0])
    with torch.inference_mode():  # the never-written memory adds nothing: the backbone alone
        theirs = llama(input_ids=torch.as_tensor(ids)[None]).logits.numpy()
    require_close("the logits beside transformers'", backend.extend(ids, backend.start(1), True)[0], theirs, 1e-5)
    rows = []
    for prompt in PROMPTS:
        ids = draw(prompt)
        time_ours(backend, memory, ids, 4), time_theirs(llama, ids, 4)
        ours, theirs = [], []
        for i in range(a.repeats):
            ours.append(time_ours(backend, memory, ids, DECODE))
            theirs.append(time_theirs(llama, ids, DECODE))
            print(f"prompt {prompt} repeat {i + 1}/{a.repeats}: lm2 {ours[-1]}, transformers {theirs[-1]}", file=sys.stderr)
        for j, what in ((0, f"prefill {prompt}"), (1, f"decode {DECODE} after {prompt}")):
            o, t = [x[j] for x in ours], [x[j] for x in theirs]
            ratio = statistics.median(x / y for x, y in zip(o, t, strict=True))
            rows.append([what, f"{statistics.median(o):.1f}", f"{statistics.median(t):.1f}", f"{ratio:.2f}x"])
    print(f"`{command()}` on {machine()}; {torch.get_num_threads()} threads; {versions('torch', 'transformers')}; float32, seed 0, median of {a.repeats}\n")
    print(table(["tokens/s", "lm2, memory on", "transformers", "ratio"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
