"""MLX on the real SmolLM2: beside PyTorch in float32, repacked from its GGUF bit for bit, and rounded to 8 bits.

Four chunks of a chat, teacher-forced. Without OpenBLAS preloaded MLX is twenty times slower on Linux: 16 tokens a chunk then, else 128.
"""

import os
import platform

import mlx_kit
import numpy as np
import pytest
from compare import nmse, relative_l2

from lm2.models.layout import open_folder
from lm2.models.text.tokenizer import Tokenizer

pytest.importorskip("mlx.core")
pytestmark = [pytest.mark.real, pytest.mark.slow]
FAST = platform.system() != "Linux" or "blas" in os.environ.get("LD_PRELOAD", "")
LENGTH = 128 if FAST else 16
CHAT = (
    "<|im_start|>user\nMy name is Ada and I keep two goldfish in a pond behind the house. Can you tell me how to look after them in winter?<|im_end|>\n"
    "<|im_start|>assistant\nOf course, Ada! Goldfish rest when the water is cold. Stop feeding them below ten degrees, keep a hole in the ice open "
    "so that gases can leave, and never break the ice with a hammer, because the shock can hurt them.<|im_end|>\n"
    "<|im_start|>user\nThank you. Write me a short poem about them, and then explain in three steps how to bake bread.<|im_end|>\n"
    "<|im_start|>assistant\nGold under glass, a slow and silent light,\nthey dream of June all through the frozen night.\n\n"
    "1. Mix flour, water, salt and yeast, and knead for ten minutes.\n2. Let the dough rise until it has doubled.\n"
    "3. Bake it at 230 degrees for forty minutes, until the crust sounds hollow.<|im_end|>\n"
)


@pytest.fixture(scope="module")
def reference(smollm2):
    ids = np.array((Tokenizer.load(smollm2).encode(CHAT) * 4)[: 4 * LENGTH])
    return ids, forced(mlx_kit.torch(smollm2), ids)


def forced(backend, ids):
    """Logits of every position (t, v) over four chunks, the bank after each, and the last state."""
    state, logits, banks = None, [], []
    for piece in ids.reshape(4, -1):
        out, chunk = mlx_kit.run(backend, piece[None], state)
        state = backend.commit(chunk)
        logits.append(out[0])
        banks.append(backend.to_host(state))
    return np.concatenate(logits), banks, state


def compare(name, got, want):
    """KL and top-1 agreement, printed with the rest."""
    p, q = (x.astype(np.float64) - x.max(-1, keepdims=True) for x in (want[0], got[0]))
    p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (p, q))
    kl, top = float((np.exp(p) * (p - q)).sum(-1).mean()), float((p.argmax(-1) == q.argmax(-1)).mean())
    banks = [nmse(a, b) for a, b in zip(got[1], want[1], strict=True)]
    print(
        f"{name}: {len(p)} positions, logits max {np.abs(got[0] - want[0]).max():.2g} relative L2 {relative_l2(got[0], want[0]):.2g}, "
        f"KL {kl:.2g}, top-1 {top:.2%}, bank NMSE {max(banks):.2g}"
    )
    return kl, top, max(banks)


def test_float32_beside_torch(smollm2, reference):
    ids, want = reference
    b = mlx_kit.mlx(smollm2)
    got = forced(b, ids)
    _, top, bank = compare("float32", got, want)
    assert np.abs(got[0] - want[0]).max() <= 5e-4 and relative_l2(got[0], want[0]) <= 1e-5 and top == 1
    assert bank <= (1e-10 if FAST else 1e-9), "the reference BLAS of MLX's Linux wheel adds up one by one"


def test_repacked_is_the_same_model(smollm2, reference, tmp_path):
    from lm2.lm2_mlx.repack import repack_gguf

    gguf = next((smollm2.parent.parent / "downloads").glob("*.gguf"))
    summary = repack_gguf(gguf, smollm2, tmp_path / "packed")  # itself compares every matrix with the GGUF's values
    ids, want = reference
    kl, top, _ = compare("4-bit repacked", forced(mlx_kit.mlx(tmp_path / "packed"), ids), want)
    assert kl <= 1e-3 and top >= 0.99
    memory = sum(t.nbytes for n, t in open_folder(tmp_path / "packed", quantized=True).header.tensors.items() if ".memory." in n)
    whole, size = sum(f.stat().st_size for f in (tmp_path / "packed").iterdir()), gguf.stat().st_size
    print(f"weights {summary['bytes']} bytes, {memory} of it memory; with tokenizer and the rest {whole}; the GGUF, with its tokenizer, {size}")
    assert summary["bytes"] < whole <= 1.1 * size


def test_eight_bits(smollm2, reference, tmp_path):
    from lm2.lm2_mlx.quantize import quantize_folder

    quantize_folder(smollm2, tmp_path / "q", 8, 32)
    ids, want = reference
    kl, top, _ = compare("8-bit group 32", forced(mlx_kit.mlx(tmp_path / "q"), ids), want)
    assert kl <= 0.01 and top >= 0.97
