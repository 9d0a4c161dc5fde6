"""ai.lm2::ChunkAttention beside its kernel: the NumPy reference and its fused products, its bound, the function body in onnx's evaluator and in stock ONNX Runtime."""

import ctypes
import ctypes.util

import attention_kit as kit
import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from op_kit import same, session

from lm2.export.ops.chunk_attention import INPUTS, OUTPUTS, exact, fused, power, reference
from lm2.export.ops.chunk_attention_body import OpsetError, function
from lm2.models.llama import attend, rotate

CALLS = (
    dict(t=5, past=7),
    dict(t=3, past=[0, 9]),
    dict(t=1, past=39, turns=3),
    dict(t=4, past=3, writes=False),
    dict(t=2, past=[40, 11], writes=False, turns=0, bias=(1, 4, 1, 40)),
    dict(t=0, past=3),
    dict(t=6, past=250, rows=300, bias=(1, 1, 6, 300)),
    dict(t=3, past=5, e=7, turns=0),
    dict(t=3, past=[0, 5], writes=False),
)


def test_fused_products_are_rounded_once():
    """As libm's fmaf has them; one by way of doubles alone, the control, rounds twice."""
    found = ctypes.util.find_library("m")
    if found is None:
        pytest.skip("there is no C library of mathematics on this machine")
    fmaf = ctypes.CDLL(found).fmaf
    fmaf.restype, fmaf.argtypes = ctypes.c_float, [ctypes.c_float] * 3
    rng = np.random.default_rng(0)
    a, b, c = (np.float32(rng.standard_normal(20_000) * 10.0 ** rng.integers(-25, 15, 20_000)) for _ in range(3))
    near = rng.random(len(a)) < 0.7
    c = np.where(near, np.float32(-(a.astype(float) * b) * (1 + rng.integers(-3, 4, len(a)) * 2.0**-24)), c)
    steps = 1 + rng.integers(0, 2**22, 2000) * 2.0**-22  # sums that lie next to the middle of two numbers
    a, b, c = (np.concatenate(pair) for pair in ((a, np.full(2000, 1 + 2.0**-23)), (b, np.full(2000, 2.0**-24 * (1 - 2.0**-23))), (c, steps + 2.0**-23)))
    a, b, c = np.float32(a), np.float32(b), np.float32(c)
    want = np.array([fmaf(*three) for three in zip(a.tolist(), b.tolist(), c.tolist(), strict=True)], np.float32)
    same(fused(a, b, c), want)
    twice = (a.astype(float) * b + c).astype(np.float32)
    assert (twice != want).any()


def test_powers():
    x = np.concatenate([-np.random.default_rng(1).random(50_000) * 87, [0, -1e-30, -87]]).astype(np.float32)
    want = np.exp(x.astype(float))
    assert (np.abs(power(x) - want) <= 1.5 * 2.0**-24 * want).all()
    assert power(np.float32([-87.01, -1e30, -np.inf])).tolist() == [0, 0, 0] and np.isnan(power(np.float32([np.nan]))).all()


def test_it_is_the_models_attention():
    """models/llama.py turns heads and attends; the second call of a chunk, 3 query heads for each key/value head."""
    rng = np.random.default_rng(2)
    given = kit.call(rng, 6, 11, 6, 2, 16, 40)
    _, t, _ = given.x.shape
    cos, sin = (torch.tensor(np.concatenate([a, a], 1)[11 : 11 + t]) for a in (given.cos, given.sin))  # (t, e)
    heads = torch.tensor(given.x.reshape(1, t, 10, 16)).transpose(1, 2)  # (b, h + 2k, t, e)
    turned = rotate(heads[:, :8], cos, sin)
    past = [torch.tensor(a[:, :, :11]) for a in (given.past_key, given.past_value)]
    key, value = torch.cat([past[0], turned[:, 6:]], 2), torch.cat([past[1], heads[:, 8:]], 2)
    want = attend(turned[:, :6], key, value).transpose(1, 2).reshape(1, t, 96).numpy()
    y, present_key, present_value = reference(given, 6)
    np.testing.assert_allclose(y, want, rtol=0, atol=2e-6)
    np.testing.assert_allclose(present_key[:, :, :17], key, rtol=0, atol=1e-6)
    same(present_value[:, :, :17], value.numpy())
    same(present_key[:, :, 17:], given.past_key[:, :, 17:])


@pytest.mark.parametrize("opset", [13, 18, 25])
@pytest.mark.parametrize("how", ["evaluator", "stock"])
def test_the_body(opset, how):
    """Within the kernel's bound of float64; caches written where the kernel writes them, nothing else of them changed."""
    rng = np.random.default_rng(opset)
    proto = kit.model(4, opset)
    run = session(proto, threads=2).run if how == "stock" else ReferenceEvaluator(proto).run
    for settings in CALLS:
        given = kit.call(rng, **settings)
        y, *caches = run(None, kit.feed(given))
        assert y.dtype == np.float32
        kit.near(y, given, 4)
        for got, want in zip(caches, reference(given, 4)[1:], strict=True):
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)
            if not settings.get("writes", True):
                same(got, want)


@pytest.mark.slow
def test_the_body_with_shapes_and_without_presents():
    given = (["b", "t", 64], *[["b", 2, "W", 16]] * 2, ["p"], *[["r", "w"]] * 2, [1, 1, 1, 1])
    proto = kit.model(4, 23, outputs=1, shapes=dict(zip(INPUTS, given, strict=True)) | {OUTPUTS[0]: ["b", "t", 64]})
    onnx.checker.check_model(proto, full_check=True)
    given = kit.call(np.random.default_rng(3), 4, 30, writes=False)
    for run in (session(proto), ReferenceEvaluator(proto), kit.kernel(proto)):
        kit.near(run.run(None, kit.feed(given))[0], given, 4)


def test_scale_is_one_over_the_root_unless_it_is_given():
    """An attribute that a node leaves out, too (which onnx's evaluator does not know)."""
    from onnx import helper

    given = kit.call(np.random.default_rng(4), 2, 5)
    for node, scale in (
        (helper.make_node("ChunkAttention", INPUTS, OUTPUTS, domain="ai.lm2", heads=4), 0.25),
        (helper.make_node("ChunkAttention", INPUTS, OUTPUTS, domain="ai.lm2", heads=4, scale=1.0), 1.0),
    ):
        proto = kit.model(4, node=node)
        for run in (session(proto), kit.kernel(proto)):
            kit.near(run.run(None, kit.feed(given))[0], given, 4, scale)
    with pytest.raises(AssertionError):
        kit.near(kit.kernel(kit.model(4)).run(None, kit.feed(given))[0], given, 4, 0.26)


def test_other_opsets_are_refused():
    for opset in (12, 26):
        with pytest.raises(OpsetError, match=f"no function body for ONNX opset {opset}; export with an opset from 13 to 25"):
            function(opset)


def test_the_bound_is_not_empty():
    """Large scores: within it; with keys rounded to quarters, the control, not."""
    rng = np.random.default_rng(5)
    given = kit.call(rng, 8, 200, 2, 1, 64, 220, writes=False, turns=0)
    given = given._replace(x=given.x * 20)
    kit.near(reference(given, 2)[0], given, 2)
    y, _ = exact(given._replace(past_key=np.round(given.past_key * 4) / np.float32(4)), 2)
    with pytest.raises(AssertionError):
        kit.near(y, given, 2)
