"""Inputs for every kernel, with awkward shapes, and the comparison of what it gives with the plain form in float64."""

import torch
from compare import assert_close

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
GATES = {torch.float32: (1e-5, 1e-4), torch.float16: (5e-3, 5e-3), torch.bfloat16: (3e-2, 3e-2)}
WIDTHS = ((1, 1, 1), (2, 1, 130), (3, 5, 37))  # b, t, d
HEADS = ((1, 1, 1, 1, 8), (3, 4, 2, 70, 8), (2, 9, 3, 129, 20), (1, 3, 3, 200, 64))  # b, h, k, s, e


def drawer(seed):
    """Numbers around 0 with a spread of 2, drawn from one seed: draw(shape, dtype)."""
    g = torch.Generator().manual_seed(seed)
    return lambda shape, dtype=torch.float32: (torch.randn(shape, generator=g) * 2).to(dtype)


def exact(args):
    """The same arguments in float64; a dtype argument becomes float64."""
    return tuple(
        torch.float64 if isinstance(a, torch.dtype) else a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a
        for a in args
    )


def close(name, got, want, dtype=None):
    """Compare with the gate of a dtype (default: the result's own)."""
    assert_close(name, got.double(), want.double(), *GATES[dtype or got.dtype])


def update_args(shape, dtype, seed=0):
    """Gates as views of a wider tensor, f the same for every row, old a slice of a bank: the strides a model has."""
    draw = drawer(seed)
    b, t, d = shape
    i, z = draw((b, t, 2 * d), dtype).chunk(2, dim=-1)
    return i, draw((d,), dtype).expand(b, t, d), z, draw((b, t + 3, d), dtype)[:, 2 : 2 + t]


def finish_args(shape, dtype, scale=True, seed=0):
    draw = drawer(seed)
    b, t, d = shape
    wide = torch.float32
    return (
        draw((b, t, 2 * d)), draw((b, t, 2 * d)), draw((b, t, d), dtype), draw((b, t + 3, d))[:, 1 : 1 + t], draw((d,)),
        draw((d,), wide) if scale else None, dtype,
    )  # fmt: skip


def step_args(shape, dtype, scale=True, seed=0):
    """One token of each of b sequences at positions of their own in buffers of t rows; the buffer to write is full of NaN."""
    draw = drawer(seed)
    b, t, d = shape
    position = torch.randint(0, t, (b,), generator=torch.Generator().manual_seed(seed))
    rows = torch.full((b, t, d), float("nan"))
    vectors = draw((d,)), draw((d,)) if scale else None
    return draw((b, 2 * d)), draw((b, 2 * d)), draw((b, d), dtype), draw((b, t, d)), *vectors, draw((b, d), dtype), position, rows


def attention_args(heads, dtype, limited, seed=0, window=None):
    """Keys and values lie in a buffer that goes on after them; past `length` they are NaN, and before its last `window`."""
    draw = drawer(seed)
    b, h, k, s, e = heads
    length = torch.randint(1, s + 1, (b,), generator=torch.Generator().manual_seed(seed)) if limited else None
    keys, values = draw((b, k, s + 5, e), dtype), draw((b, k, s + 5, e), dtype)
    for row in range(b):
        end = s if length is None else int(length[row])
        keys[row, :, end:], values[row, :, end:] = float("nan"), float("nan")
        if window is not None:
            hidden = slice(0, max(0, end - window))
            keys[row, :, hidden], values[row, :, hidden] = float("nan"), float("nan")
    return draw((b, h, e), dtype), keys[:, :, :s], values[:, :, :s], length


def rotary_args(heads, dtype, seed=0):
    """The buffers to write are full of NaN."""
    draw = drawer(seed)
    b, h, k, s, e = heads
    e += e % 2
    position = torch.randint(0, s, (b,), generator=torch.Generator().manual_seed(seed))
    keys, values = (torch.full((b, k, s, e), float("nan"), dtype=dtype) for _ in range(2))
    return draw((b, (h + 2 * k) * e), dtype), draw((s, e)), draw((s, e)), position, keys, values


def open_args(shape, dtype, seed=0):
    draw = drawer(seed)
    b, t, n = shape
    return draw((b, t + 2, n))[:, 1 : 1 + t], draw((b, t, n), dtype), draw((n,)), draw((n,)), 1e-5


def close_args(shape, one_pool, seed=0):
    draw = drawer(seed)
    b, t, n = shape
    pooled = draw((b, 1 if one_pool else t, 2 * n))
    return (
        draw(shape),
        draw(shape),
        draw((n,)),
        draw((n,)),
        1e-5,
        pooled,
        draw((b, t, 2 * n)),
        draw(()),
        draw(()),
        draw((b, t + 2, n))[:, :t],
    )


def norm_args(shape, dtype, out, seed=0):
    draw = drawer(seed)
    return draw(shape, dtype), draw(shape[-1:]), 1e-5, out


def pool_args(shape, dtype, seed=0):
    """Sums of a chunk of t positions; those from `position` + 1 onward are NaN."""
    draw = drawer(seed)
    b, t, d = shape
    position = torch.randint(0, t, (b,), generator=torch.Generator().manual_seed(seed))
    sums = draw((b, t + 1, d)).abs()
    for row in range(b):
        sums[row, position[row] + 1 :] = float("nan")
    return draw((b, d), dtype), draw((d,)), position, sums


def store_args(heads, dtype, seed=0):
    draw = drawer(seed)
    b, _, h, t, e = heads
    position = torch.randint(0, t, (b,), generator=torch.Generator().manual_seed(seed))
    return (
        draw((b, h * e), dtype),
        draw((b, h * e), dtype),
        position,
        *(torch.full((b, h, t, e), float("nan"), dtype=dtype) for _ in range(2)),
    )
