"""The other operators through Triton's interpreter: against their plain form in float64, every dtype, awkward shapes, poisoned buffers, gradients."""

import kernel_kit as kit
import pytest
import torch

from lm2.models.kernels import attention, gated, norm, released, rotary, stream

F32 = torch.float32


@pytest.mark.parametrize("dtype", kit.DTYPES, ids=str)
@pytest.mark.parametrize("shape", kit.WIDTHS, ids=str)
def test_norms(shape, dtype):
    for out in {dtype, F32}:
        x, weight, eps, _ = kit.norm_args(shape, dtype, out)
        got = norm.rms_norm(x, weight, eps, out)
        kit.close("norm", got, norm.plain_rms_norm(*kit.exact((x, weight, eps, out))))
        y = kit.drawer(5)(shape, dtype)
        total, got = norm.add_rms_norm(x, y, weight, eps, out)
        assert total.dtype == dtype and got.dtype == out
        kit.close("sum", total, x.double() + y.double())
        kit.close("norm of the sum", got, norm.plain_rms_norm(*kit.exact((total, weight, eps, out))))


@pytest.mark.parametrize("dtype", kit.DTYPES, ids=str)
@pytest.mark.parametrize("shape", kit.WIDTHS, ids=str)
@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("both", [True, False])
def test_finish(shape, dtype, scale, both):
    args = kit.finish_args(shape, dtype, scale)
    add, rows = gated.gated_memory_finish(*args, both)
    want_add, want_rows = gated.plain_finish(*kit.exact(args), both)
    assert add.dtype == dtype and rows.dtype == F32
    kit.close("add", add, want_add)
    kit.close("rows", rows, want_rows)


@pytest.mark.parametrize("dtype", kit.DTYPES, ids=str)
@pytest.mark.parametrize("shape", kit.WIDTHS, ids=str)
@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("both", [True, False])
def test_step_writes_one_row_of_each_sequence(shape, dtype, scale, both):
    args = kit.step_args(shape, dtype, scale)
    joined, position, rows = gated.gated_memory_step(*args, both), args[-2], args[-1]
    wide = kit.exact(args)
    want = gated.plain_step(*wide, both)
    kit.close("joined", joined, want, dtype)
    written = torch.zeros(rows.shape[:2], dtype=torch.bool)
    written[torch.arange(shape[0]), position] = True
    kit.close("rows", rows[written], wide[-1][written])
    assert rows[~written].isnan().all(), "no other row is touched"


@pytest.mark.parametrize("dtype", kit.DTYPES, ids=str)
@pytest.mark.parametrize("heads", kit.HEADS, ids=str)
@pytest.mark.parametrize("limited", [True, False])
def test_attention(heads, dtype, limited):
    """What lies past the visible keys is NaN and must not be looked at."""
    q, keys, values, length = kit.attention_args(heads, dtype, limited)
    got = attention.decode_attention(q, keys, values, length)
    clean = [x.double().nan_to_num() for x in (keys, values)]
    kit.close("attention", got, attention.plain_attention(q.double(), *clean, length))


@pytest.mark.parametrize("window", [1, 65, 1000])
@pytest.mark.parametrize("heads", kit.HEADS[1:], ids=str)
@pytest.mark.parametrize("limited", [True, False])
def test_attention_in_a_window(heads, limited, window):
    """What lies before the window is NaN and must not be looked at."""
    q, keys, values, length = kit.attention_args(heads, F32, limited, window=window)
    got = attention.decode_attention(q, keys, values, length, window=window)
    clean = [x.double().nan_to_num() for x in (keys, values)]
    kit.close("attention", got, attention.plain_attention(q.double(), *clean, length, window=window))


@pytest.mark.parametrize("off", [1, -1])
def test_a_window_that_is_off_by_one_is_noticed(off):
    q, keys, values, length = kit.attention_args((3, 4, 2, 70, 8), F32, True)
    keys, values = keys.nan_to_num(1.0), values.nan_to_num(1.0)
    want = attention.plain_attention(q.double(), keys.double(), values.double(), length, window=9)
    with pytest.raises(AssertionError):
        kit.close("attention", attention.decode_attention(q, keys, values, length, window=9 + off), want)


def test_attention_with_scores_far_from_zero():
    q, keys, values, _ = kit.attention_args((2, 4, 2, 150, 16), F32, False)
    q = q * 60
    kit.close(
        "attention",
        attention.decode_attention(q, keys, values),
        attention.plain_attention(q.double(), keys.double(), values.double(), None),
    )


def test_attention_over_many_rows_in_many_spans():
    from lm2.models.kernels.attention_triton import split

    assert split(1, 2048)[0] > 16 and split(264, 2048)[0] == 1 and split(1, 1) == (1, 64)
    for pairs in (1, 3, 9, 1000):
        for s in (1, 64, 65, 1000, 2048, 5000):
            spans, span = split(pairs, s)
            assert spans * span >= s > (spans - 1) * span, "every key is in a span, no span is empty"
    for window in (None, 700):  # whole spans are before the window
        args = kit.attention_args((1, 2, 1, 2048, 16), F32, True, seed=4, window=window)
        clean = [x.double().nan_to_num() for x in args[1:3]]
        want = attention.plain_attention(args[0].double(), *clean, args[3], window=window)
        kit.close("attention", attention.decode_attention(*args, window=window), want)


def test_a_length_that_is_off_by_one_is_noticed():
    q, keys, values, length = kit.attention_args((3, 4, 2, 70, 8), F32, True)
    keys, values = keys.nan_to_num(1.0), values.nan_to_num(1.0)
    want = attention.plain_attention(q.double(), keys.double(), values.double(), length)
    with pytest.raises(AssertionError):
        kit.close("attention", attention.decode_attention(q, keys, values, length - 1), want)


@pytest.mark.parametrize("dtype", kit.DTYPES, ids=str)
@pytest.mark.parametrize("heads", kit.HEADS, ids=str)
def test_rotary(heads, dtype):
    args = kit.rotary_args(heads, dtype)
    wide = kit.exact(args)
    got, want = rotary.rotate_store(*args), rotary.plain_rotate_store(*wide)
    kit.close("queries", got, want)
    for name, buffer, exact in (("keys", args[4], wide[4]), ("values", args[5], wide[5])):
        assert torch.equal(buffer.isnan(), exact.isnan()), "the position of each sequence is written, and nothing else"
        kit.close(name, buffer.nan_to_num(), exact.nan_to_num())


@pytest.mark.parametrize("dtype", kit.DTYPES, ids=str)
@pytest.mark.parametrize("shape", kit.WIDTHS, ids=str)
def test_released_chain(shape, dtype):
    args = kit.open_args(shape, dtype)
    for name, got, want in zip(("z", "tanh"), released.released_open(*args), released.plain_open(*kit.exact(args)), strict=True):
        kit.close(name, got, want)
    for one_pool in (True, False):
        args = kit.close_args(shape, one_pool)
        kit.close("rows", released.released_close(*args), released.plain_close(*kit.exact(args)))


@pytest.mark.parametrize("dtype", kit.DTYPES, ids=str)
@pytest.mark.parametrize("shape", kit.WIDTHS, ids=str)
def test_pool(shape, dtype):
    args = kit.pool_args(shape, dtype)
    wide = kit.exact(args)
    kit.close("mean", stream.released_pool(*args), stream.plain_pool(*wide))
    assert torch.equal(args[3].isnan(), wide[3].isnan()), "one more position is written, and nothing else"
    kit.close("sums", args[3].nan_to_num(), wide[3].nan_to_num())


@pytest.mark.parametrize("dtype", kit.DTYPES, ids=str)
@pytest.mark.parametrize("heads", kit.HEADS, ids=str)
def test_store(heads, dtype):
    """Copies: equal, not close."""
    args, plain = kit.store_args(heads, dtype), kit.store_args(heads, dtype)
    stream.store_heads(*args)
    stream.plain_store(*plain)
    for got, want in zip(args[3:], plain[3:], strict=True):
        assert torch.equal(got.isnan(), want.isnan()) and torch.equal(got.nan_to_num(), want.nan_to_num())


GRADIENTS = {
    "rms_norm": (norm.rms_norm_op, norm.plain_rms_norm, kit.norm_args((2, 3, 7), F32, F32)),
    "add_rms_norm": (norm.add_rms_norm_op, norm.plain_add_rms_norm, (kit.drawer(9)((2, 3, 7)), *kit.norm_args((2, 3, 7), F32, F32))),
    "finish": (gated.finish_op, gated.plain_finish, kit.finish_args((2, 3, 7), F32)),
    "finish without a scale": (gated.finish_op, gated.plain_finish, kit.finish_args((2, 3, 7), F32, False)),
    "attention": (attention.attention_op, attention.plain_attention, kit.attention_args((2, 4, 2, 9, 8), F32, False)),
    "open": (released.open_op, released.plain_open, kit.open_args((2, 3, 7), F32)),
    "close": (released.close_op, released.plain_close, kit.close_args((2, 3, 7), True)),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients(name):
    op, plain, args = GRADIENTS[name]
    grads = []
    for function, given in ((op, args), (plain, kit.exact(args))):
        given = [a.clone().requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in given]
        made = function(*given)
        made = made if isinstance(made, tuple) else (made,)
        seeds = [kit.drawer(11 + k)(y.shape, y.dtype) for k, y in enumerate(made)]
        wanted = [a for a in given if isinstance(a, torch.Tensor) and a.requires_grad]
        grads.append(torch.autograd.grad(made, wanted, seeds))
    assert len(grads[0]) >= 2
    for k, (got, want) in enumerate(zip(*grads, strict=True)):
        kit.close(f"gradient {k}", got, want)


@pytest.mark.parametrize("name", GRADIENTS)
def test_registration(name):
    """Schema, shapes of the shape-only form, and the gradient's registration, as torch.library checks them."""
    op, _, args = GRADIENTS[name]
    torch.library.opcheck(op, args)


def test_registration_of_the_operators_that_write():
    torch.library.opcheck(
        gated.step_op,
        [x.nan_to_num() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in kit.step_args((2, 3, 7), F32)],
    )
    torch.library.opcheck(
        rotary.rotate_store_op, [x.nan_to_num() if x.is_floating_point() else x for x in kit.rotary_args((2, 4, 2, 5, 8), F32)]
    )
    torch.library.opcheck(stream.pool_op, [x.nan_to_num() if x.is_floating_point() else x for x in kit.pool_args((2, 3, 7), F32)])
    torch.library.opcheck(stream.store_op, [x.nan_to_num() if x.is_floating_point() else x for x in kit.store_args((2, 4, 2, 5, 8), F32)])
