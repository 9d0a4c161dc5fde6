"""MLX on the real SmolLM2: beside PyTorch in float32, repacked from its GGUF bit for bit, and rounded to 8 bits.

Four chunks of a chat, teacher-forced. Without OpenBLAS preloaded MLX is twenty times slower on Linux: 16 tokens a chunk then, else 128.

What MLX computes is held against PyTorch on the very same numbers, by figures that few positions give as well as many: relative L2, KL, and the
likeliest token where the two likeliest are more than rounding apart. What rounding to 8 bits costs is no matter of arithmetic: PyTorch says it, on the
unpacked numbers, over 512 positions on every machine.
"""

import mlx_kit
import numpy as np
import pytest
from compare import nmse

from lm2.models.layout import open_folder
from lm2.models.text.tokenizer import Tokenizer
from lm2.runtime.parity.measures import LogitStats

pytest.importorskip("mlx.core")
pytestmark = [pytest.mark.real, pytest.mark.slow]
FAST = mlx_kit.fast()
WHOLE = 128  # tokens a chunk
LENGTH = WHOLE if FAST else 16
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
def whole(smollm2):
    """512 tokens, and what PyTorch makes of them."""
    ids = np.array((Tokenizer.load(smollm2).encode(CHAT) * 4)[: 4 * WHOLE])
    return ids, forced(mlx_kit.torch(smollm2), ids)


@pytest.fixture(scope="module")
def reference(smollm2, whole):
    """As many as MLX has the time for."""
    ids = whole[0][: 4 * LENGTH]
    return ids, whole[1] if LENGTH == WHOLE else forced(mlx_kit.torch(smollm2), ids)


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
    """KL, top-1 agreement, the same where the gap is clear (measures.py) and bank NMSE; printed with the rest."""
    stats = LogitStats()
    stats.add(want[0], got[0])
    bank = max(nmse(a, b) for a, b in zip(got[1], want[1], strict=True))
    print(
        f"{name}: {stats.positions} positions, logits max {stats.largest:.2g} relative L2 {stats.relative_l2:.2g}, KL {stats.kl:.2g}, "
        f"top-1 {stats.top1:.2%}, of {stats.clear} clear ones {stats.top1_clear:.2%}, bank NMSE {bank:.2g}"
    )
    return stats, bank


def assert_same_model(name, got, want):
    """The same numbers computed by two libraries. Measured with PyTorch on AVX-512, AVX2 and SSE, and MLX on five kernels of OpenBLAS and without:
    relative L2 at most 4.2e-6, KL 5.7e-11, bank NMSE 3e-11 (6.2e-12 with OpenBLAS). A model of other numbers, rounded to 8 bits, is 2e-2, 1e-3 and 3e-4 away."""
    stats, bank = compare(name, got, want)
    assert stats.relative_l2 <= 1e-5 and stats.kl <= 1e-9 and stats.clear > 0.9 * stats.positions and stats.top1_clear == 1
    assert bank <= (1e-10 if FAST else 1e-9), "the reference BLAS of MLX's Linux wheel adds up one by one"
    return stats


def test_float32_beside_torch(smollm2, reference):
    ids, want = reference
    stats = assert_same_model("float32", forced(mlx_kit.mlx(smollm2), ids), want)
    assert stats.largest <= 5e-4


def test_repacked_is_the_same_model(smollm2, reference, tmp_path):
    from lm2.lm2_mlx.repack import repack_gguf

    gguf = next((smollm2.parent.parent / "downloads").glob("*.gguf"))
    summary = repack_gguf(gguf, smollm2, tmp_path / "packed")  # itself compares every matrix with the GGUF's values
    ids, want = reference
    assert_same_model("4-bit repacked", forced(mlx_kit.mlx(tmp_path / "packed"), ids), want)
    memory = sum(t.nbytes for n, t in open_folder(tmp_path / "packed", quantized=True).header.tensors.items() if ".memory." in n)
    whole, size = sum(f.stat().st_size for f in (tmp_path / "packed").iterdir()), gguf.stat().st_size
    print(
        f"weights {summary['bytes']} bytes, {memory} of it memory; with tokenizer and the rest {whole}; the GGUF, with its tokenizer, {size}"
    )
    assert summary["bytes"] < whole <= 1.1 * size


def test_eight_bits(smollm2, whole, tmp_path):
    """Rounding moves the likeliest token at 2 of 512 positions, where the two likeliest are 0.01 and 0.05 apart; no position's two likeliest are closer
    than 1e-3 on either side, so that no processor's rounding (3e-4 at most) can add one. The gate is 15."""
    from lm2.lm2_mlx.quantize import quantize_folder

    quantize_folder(smollm2, tmp_path / "q", 8, 32)
    ids, want = whole
    rounded = mlx_kit.torch(mlx_kit.unpacked(tmp_path / "q", smollm2, tmp_path / "unpacked"))
    exact = forced(rounded, ids)
    stats, _ = compare("8-bit group 32", exact, want)
    assert stats.positions >= 500 and stats.kl <= 0.01 and stats.top1 >= 0.97
    part = exact if LENGTH == WHOLE else forced(rounded, ids[: 4 * LENGTH])
    assert_same_model("8-bit group 32 in MLX", forced(mlx_kit.mlx(tmp_path / "q"), ids[: 4 * LENGTH]), part)
