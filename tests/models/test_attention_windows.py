"""Self-attention in a window against its definition: token i sees j with i - w < j <= i, whatever the call's size; and what must not pass it."""

import pytest
import torch
from compare import assert_close

from lm2.models.llama import CPU_QUERY_ROWS, attend

EXACT = 1e-11
# Tokens of a call, positions before it, window: one token, a call of all, pieces, blocks of queries on a CPU, windows of one and of all.
CASES = [(1, 0, 5), (1, 4, 5), (1, 5, 5), (1, 40, 5), (20, 0, 5), (20, 0, 20), (20, 0, 19), (7, 13, 6), (7, 13, 1), (7, 13, 14), (5, 300, 33), (300, 0, 40), (300, 11, 200), (129, 3, 500)]


def inputs(t, past, seed=1):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=g, dtype=torch.float64) for shape in ((2, 4, t, 8), (2, 2, past + t, 8), (2, 2, past + t, 8))]


def defined(q, k, v, window):
    """One query, one head after another."""
    out, t, s = torch.zeros_like(q), q.shape[2], k.shape[2]
    for head in range(q.shape[1]):
        for i in range(t):
            seen = [j for j in range(s) if s - t + i - window < j <= s - t + i]
            keys, values = k[:, head // 2, seen], v[:, head // 2, seen]  # (b, w, e) each
            weights = (torch.einsum("be,bje->bj", q[:, head, i], keys) / 8**0.5).softmax(-1)  # (b, w)
            out[:, head, i] = torch.einsum("bj,bje->be", weights, values)
    return out


@pytest.mark.parametrize(("t", "past", "window"), CASES)
def test_a_window_is_what_it_is_defined_to_be(t, past, window):
    q, k, v = inputs(t, past)
    assert_close("attention", attend(q, k, v, window=window), defined(q, k, v, window), EXACT)
    assert any(t > CPU_QUERY_ROWS for t, _, _ in CASES)


@pytest.mark.parametrize(("t", "past", "window"), [(1, 40, 5), (20, 0, 5), (7, 13, 6), (300, 11, 200)])
def test_a_window_of_one_more_or_less_is_noticed(t, past, window):
    q, k, v = inputs(t, past)
    right = attend(q, k, v, window=window)
    for wrong in (window - 1, window + 1, None):
        assert (attend(q, k, v, window=wrong) - right).abs().max() > 1e-3


@pytest.mark.parametrize("window", [None, 21, 100])
def test_a_window_of_everything_changes_no_bit(window):
    q, k, v = inputs(20, 1)
    assert torch.equal(attend(q, k, v, window=window), attend(q, k, v))
