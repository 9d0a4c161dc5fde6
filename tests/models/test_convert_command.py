"""`lm2 convert` as a command: its output, a kill in the middle, and how much memory it takes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sources
from safetensors.numpy import save_file

from lm2.models.layout import open_folder


@pytest.fixture(scope="module")
def src(tmp_path_factory):
    return sources.save_hf(sources.llama(), tmp_path_factory.mktemp("hf") / "tiny")


def lm2(*arguments, **environment):
    program = [sys.executable, "-c", "from lm2.cli import main; main()"]
    return subprocess.run([*program, *map(str, arguments)], capture_output=True, text=True, env={**os.environ, **environment}, timeout=120)


def test_summary_as_json_and_as_text(tmp_path, src):
    done = lm2(
        "convert", src, tmp_path / "a", "--json", "--memory-layers", "0,2", "--memory-slots", "32", "--memory-chunk", "16", "--seed", "9"
    )
    assert done.returncode == 0 and done.stderr == ""
    summary = json.loads(done.stdout)
    assert summary["memory"]["layers"] == [0, 2] and (summary["memory"]["slots"], summary["memory"]["chunk"]) == (32, 16)
    assert summary["fingerprint"] == open_folder(tmp_path / "a").fingerprint
    assert json.loads((tmp_path / "a" / "source.json").read_text())["seed"] == 9
    done = lm2("convert", src, tmp_path / "b")
    assert done.returncode == 0 and ("memory: cell gated, layers 1,2, 128 slots, chunks of 128 (not trained yet)") in done.stdout
    assert done.stderr.splitlines() == ["note: the source has no tokenizer.json: the model takes token ids only"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--memory-layers", "one"], 2, "must be auto or layer numbers"),
        (["--memory-cell", "other"], 2, "'other' is not one of"),
        (["--memory-slots", "0"], 2, "0 is not in the range"),
        (["--memory-layers", "7"], 1, "lm2: .*memory.layers 7 must be a layer from 0 to 2"),
        (["--config", "x.json"], 1, "lm2: --config is for released checkpoints"),
    ],
)
def test_wrong_options(tmp_path, src, arguments, code, message):
    import re

    done = lm2("convert", src, tmp_path / "dst", *arguments)
    assert done.returncode == code and re.search(message, done.stderr) and "Traceback" not in done.stderr
    assert not (tmp_path / "dst").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from lm2.models.checkpoints.convert import convert

def report(event):
    if event.stage == "converting" and event.done > event.total * {share}:
        os.kill(os.getpid(), signal.SIGKILL)

convert(Path(sys.argv[1]), Path(sys.argv[2]), report=report)
"""


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_kill_leaves_nothing_and_the_next_run_succeeds(tmp_path, src, share):
    dst = tmp_path / "dst"
    killed = subprocess.run([sys.executable, "-c", KILLED.format(share=share), src, dst], timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert not dst.exists() and (tmp_path / ".dst.partial").exists()
    assert lm2("convert", src, dst).returncode == 0
    open_folder(dst)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dst"]


MEASURED = """
import sys
from pathlib import Path
import gguf, numpy, tokenizers
from lm2.models.checkpoints.convert import convert
from lm2.models.checkpoints.warmstart import MemoryRequest

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024

before = peak()
convert(Path(sys.argv[1]), Path(sys.argv[2]), MemoryRequest(layers=(0, 1), slots=64))
print(peak() - before)
"""


def growth(src, dst):
    done = subprocess.run([sys.executable, "-c", MEASURED, src, dst], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    print(f"peak grew by {done.stdout.strip()} MiB; weights are {(Path(dst) / 'model.safetensors').stat().st_size >> 20} MiB")
    return int(done.stdout)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_peak_memory_is_near_a_tensor_not_the_model(tmp_path):
    """A model of about 150 MiB whose largest tensor has 4 MiB."""
    src, layers, d, ffn, vocab = tmp_path / "src", 12, 512, 2048, 2048
    src.mkdir()
    fields = dict(
        model_type="llama", vocab_size=vocab, hidden_size=d, intermediate_size=ffn, num_hidden_layers=layers, num_attention_heads=8,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True, eos_token_id=2, bos_token_id=1, hidden_act="silu",
    )  # fmt: skip
    (src / "config.json").write_text(json.dumps(fields))
    ones = lambda *shape: np.full(shape, 0.01, np.float32)  # noqa: E731
    tensors = {"model.embed_tokens.weight": ones(vocab, d), "model.norm.weight": ones(d)}
    for i in range(layers):
        p = f"model.layers.{i}."
        tensors |= {p + "input_layernorm.weight": ones(d), p + "post_attention_layernorm.weight": ones(d)}
        tensors |= {f"{p}self_attn.{n}_proj.weight": ones(r, d) for n, r in (("q", d), ("k", 128), ("v", 128), ("o", d))}
        tensors |= {
            p + "mlp.gate_proj.weight": ones(ffn, d),
            p + "mlp.up_proj.weight": ones(ffn, d),
            p + "mlp.down_proj.weight": ones(d, ffn),
        }
    save_file(tensors, src / "model.safetensors")
    total = sum(t.nbytes for t in tensors.values()) >> 20
    assert total > 150 and max(t.nbytes for t in tensors.values()) == 4 << 20
    assert growth(src, tmp_path / "dst") < 50


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_a_large_quantised_tensor_is_expanded_in_row_blocks(tmp_path):
    """One embedding that is 128 MiB when dequantised, 34 MiB in the file."""
    from gguf import GGUFWriter
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    vocab, d = 65536, 512
    model = sources.llama(vocab=96, hidden=d, heads=8, kv=2, ffn=64, layers=2)
    sources.write_gguf(tmp_path / "small.gguf", model, "Q8_0")
    items, nbytes = GGML_QUANT_SIZES[GGMLQuantizationType.Q8_0]
    row = np.zeros((1, d // items, nbytes), np.uint8)
    row[..., 1] = 0x20  # a small float16 scale
    row[..., 2:] = 3
    large = np.tile(row.reshape(1, -1), (vocab, 1))
    original = GGUFWriter.add_tensor

    def add_tensor(self, name, tensor, **options):
        original(self, name, large if name == "token_embd.weight" else tensor, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GGUFWriter, "add_tensor", add_tensor)
        sources.write_gguf(tmp_path / "large.gguf", model, "Q8_0")
    assert (tmp_path / "large.gguf").stat().st_size > 34 << 20
    assert growth(tmp_path / "large.gguf", tmp_path / "dst") < 64
    assert open_folder(tmp_path / "dst").config.vocab_size == vocab
