"""Large models from end to end on random weights: convert, export, answer on ONNX; each in a process of its own, with its peak memory and its time.

    python benchmarks/large.py llama-3.2-1b qwen3-1.7b [--precision int4] [--work DIR]
    python benchmarks/large.py llama-3.2-1b --train DATA [--train-options "--task text --half --recompute ..."]

The checkpoint has the named model's config and shapes, bfloat16, in shards, N(0, 0.02^2) (seed 0), and a tokenizer of 256 bytes; it is made one piece of a
matrix at a time. What it says means nothing: what it takes is what is measured. Peak memory is the kernel's `ru_maxrss` of the process (mapped pages
of files that it touched count too), `interpreter` is a process that imports what an export imports and ends. --tiny makes a small one of the same kind.
The work folder is removed in the end unless --keep.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import machine, table

PIECE = 1 << 22  # values that are drawn at once
SHARD = 1 << 30  # bytes of a shard, about
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 8192, "vocab_size": 128256, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0, "tie_word_embeddings": True, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "torch_dtype": "bfloat16",
    "rope_scaling": {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
    "bos_token_id": 256, "eos_token_id": 258,
}  # fmt: skip
QWEN3 = {
    "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_size": 2048, "num_hidden_layers": 28, "num_attention_heads": 16,
    "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 6144, "vocab_size": 151936, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0, "tie_word_embeddings": True, "hidden_act": "silu", "attention_bias": False, "use_sliding_window": False,
    "torch_dtype": "bfloat16", "bos_token_id": 256, "eos_token_id": 258,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {"llama-3.2-1b": LLAMA, "qwen3-1.7b": QWEN3}
TINY = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 96,
        "vocab_size": 320, "max_position_embeddings": 1024}  # fmt: skip


def tensors(c: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of a Hugging Face checkpoint with config `c`, tied."""
    d, e, f = c["hidden_size"], c["head_dim"], c["intermediate_size"]
    h, k = c["num_attention_heads"], c["num_key_value_heads"]
    yield "model.embed_tokens.weight", (c["vocab_size"], d)
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        yield f"{p}input_layernorm.weight", (d,)
        for name, rows in (("q", h * e), ("k", k * e), ("v", k * e)):
            yield f"{p}self_attn.{name}_proj.weight", (rows, d)
        yield f"{p}self_attn.o_proj.weight", (d, h * e)
        if c["model_type"] == "qwen3":
            yield f"{p}self_attn.q_norm.weight", (e,)
            yield f"{p}self_attn.k_norm.weight", (e,)
        yield f"{p}post_attention_layernorm.weight", (d,)
        yield f"{p}mlp.gate_proj.weight", (f, d)
        yield f"{p}mlp.up_proj.weight", (f, d)
        yield f"{p}mlp.down_proj.weight", (d, f)
    yield "model.norm.weight", (d,)


def shards(c: dict[str, Any], most: int) -> list[list[tuple[str, tuple[int, ...]]]]:
    """The tensors in files of about `most` bytes."""
    made: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    size = 0
    for name, shape in tensors(c):
        nbytes = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        if made[-1] and size + nbytes > most:
            made.append([])
            size = 0
        made[-1].append((name, shape))
        size += nbytes
    return made


def make(name: str, folder: Path, small: bool) -> None:
    """Write a checkpoint of shape `name` into the new folder: config.json, shards, their index, a tokenizer and a chat template."""
    import numpy as np

    from lm2.models.tensorfile import TensorWriter, from_float32

    c = SHAPES[name] | (TINY if small else {})
    rng = np.random.default_rng(0)

    def pieces(shape: tuple[int, ...]) -> Iterator[Any]:
        if len(shape) == 1:
            yield from_float32(np.ones(shape, np.float32), "BF16")
            return
        some = max(1, PIECE // shape[1])
        for start in range(0, shape[0], some):
            noise = rng.standard_normal((min(some, shape[0] - start), shape[1]), np.float32)
            yield from_float32(noise * np.float32(0.02), "BF16")

    folder.mkdir(parents=True)
    files = shards(c, 1 << 16 if small else SHARD)
    where = {}
    for n, own in enumerate(files, 1):
        file = f"model-{n:05}-of-{len(files):05}.safetensors"
        with open(folder / file, "wb") as f:
            writer = TensorWriter(f, [(tensor, "BF16", shape) for tensor, shape in own], {"format": "pt"})
            for tensor, shape in own:
                writer.write(tensor, pieces(shape))
                where[tensor] = file
            writer.finish()
    total = sum((folder / file).stat().st_size for file in set(where.values()))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": where}))
    (folder / "config.json").write_text(json.dumps(c, indent=2))
    tokenizer(folder)


def tokenizer(folder: Path) -> None:
    """A byte-level tokenizer without merges, 256 bytes and three chat tokens, and a ChatML template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    made = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL])
    (folder / "tokenizer.json").write_text(made.to_str(), encoding="utf-8")
    template = (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def measured(command: list[str], log: Path) -> tuple[float, float]:
    """Run `command`, its output in `log`: peak resident megabytes (at least this process's own) and seconds. Raises SystemExit with the end of the log where it fails."""
    began = time.monotonic()
    with open(log, "wb") as f:
        child = subprocess.Popen(command, stdout=f, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{shlex.join(command)} ended with {child.returncode}:\n{log.read_text(errors='replace')[-3000:]}")
    unit = 1 if sys.platform == "darwin" else 1024
    return usage.ru_maxrss * unit / 1e6, time.monotonic() - began


def size_of(path: Path) -> str:
    """Megabytes of a file or of what is in a folder."""
    return f"{sum(f.stat().st_size for f in (path.rglob('*') if path.is_dir() else [path]) if f.is_file()) / 1e6:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=list(SHAPES), metavar="NAME", help=", ".join(SHAPES))
    parser.add_argument("--precision", nargs="+", default=["int4"], help="of the exports")
    parser.add_argument("--tokens", type=int, default=16, help="that generate makes")
    parser.add_argument("--train", type=Path, metavar="DATA", help="train the memory on the text of DATA for a step too")
    parser.add_argument("--train-options", default="--task text --half --recompute --steps 1 --stages 1:2x1", help="of `lm2 train`")
    parser.add_argument("--tiny", action="store_true", help="a small model of the same kind")
    parser.add_argument("--work", type=Path, help="folder for checkpoints and exports [a temporary one]")
    parser.add_argument("--keep", action="store_true", help="leave the work folder; what is there already is not made again")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.make:
        make(a.names[0], a.make, a.tiny)
        return
    work = a.work or Path(tempfile.mkdtemp(prefix="lm2-large-"))
    work.mkdir(parents=True, exist_ok=True)
    lm2 = [sys.executable, "-c", "from lm2.cli import main; main()"]
    rows: list[list[str]] = []

    def step(what: str, command: list[str], made: Path | None, log: str) -> None:
        if made is not None and made.exists():
            return
        peak, seconds = measured(command, work / f"{log}.log")
        rows.append([name, what, f"{peak:.0f}", f"{seconds:.0f}", size_of(made) if made is not None else ""])
        print(" | ".join(rows[-1]), flush=True)

    try:
        for name in a.names:
            source, model = work / f"{name}-hf", work / f"{name}-lm2"
            step("interpreter", [sys.executable, "-c", "import lm2.export.export"], None, "interpreter")
            step("make", [sys.executable, __file__, name, "--make", str(source), *["--tiny"] * a.tiny], source, f"{name}-make")
            step("convert", [*lm2, "convert", str(source), str(model)], model, f"{name}-convert")
            for precision in a.precision:
                out = work / f"{name}-{precision}"
                step(f"export {precision}", [*lm2, "export", str(model), str(out), "--precision", precision], out, f"{name}-{precision}")
                asked = ["--prompt", "The harbour wakes before the town does.", "--max-tokens", str(a.tokens), "--ignore-eos", "--temp", "0"]
                step(f"generate {a.tokens}, onnx {precision}", [*lm2, "generate", str(out), *asked], None, f"{name}-{precision}-generate")
            if a.train:
                to = work / f"{name}-trained"
                options = ["--data", str(a.train), "--out", str(to), *shlex.split(a.train_options)]
                step("train " + a.train_options, [*lm2, "train", str(model), *options], to, f"{name}-train")
        print(machine())
        print(table(["shape", "step", "peak, MB", "seconds", "written, MB"], rows))
    finally:
        if not a.keep:
            shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
