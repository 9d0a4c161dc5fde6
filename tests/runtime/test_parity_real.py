"""torch and MLX on the real SmolLM2, as `lm2 parity smollm2 --backends torch,mlx --chunks 4` compares them, with shorter chunks.

Without OpenBLAS preloaded MLX is twenty times slower on Linux: then eight tokens a chunk, and no conversation.
"""

import warnings

import mlx_kit
import parity_kit
import pytest

from lm2.runtime.parity.run import Settings, compare

pytest.importorskip("mlx.core")
pytestmark = pytest.mark.real


@pytest.mark.slow
def test_smollm2(smollm2):
    if not mlx_kit.fast():
        warnings.warn("PARITY ON THE REAL MODEL RAN WITHOUT ITS CONVERSATION: preload OpenBLAS (docs/mlx.md)", stacklevel=1)
    settings = Settings(chunks=4, tokens=64, greedy=24) if mlx_kit.fast() else Settings(chunks=4, tokens=8, greedy=0)
    pair = compare(*parity_kit.sides(smollm2), settings)
    for c in pair.checks:
        print(f"{c.section:10} {c.name:60} {c.value:10.3g} {'' if c.gate is None else f'{c.relation} {c.gate:g}':10} {c.passed} {c.note}")
    assert pair.passed, [c for c in pair.checks if c.passed is False]
    assert all(h.agreement.whole and 0 < h.position < 640 and h.written >= 512 and h.carried for h in pair.handovers)
