"""Every kernel is compiled for a real device (compute capability 9.0), with the arguments its launcher gives it; none is needed for that. Runs nothing."""

import kernel_kit as kit
import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lm2.models.kernels import attention_triton, gated_triton, norm_triton, released_triton, rotary_triton, stream_triton, update_triton

TYPES = {torch.float64: "*fp64", torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int64: "*i64"}
OPTIONS = ("num_warps", "num_stages")


class Recorder:
    """Stands for a kernel and keeps what it would have been launched with."""

    def __init__(self, kernel, launches):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        assert all(isinstance(n, int) and n > 0 for n in grid) and all(n < 65536 for n in grid[1:]), "a grid that CUDA accepts"
        return lambda *args, **kwargs: self.launches.append((self.kernel, args, kwargs))


@pytest.fixture
def launches(monkeypatch):
    found = []
    for module in (attention_triton, gated_triton, norm_triton, released_triton, rotary_triton, stream_triton, update_triton):
        for name, value in list(vars(module).items()):
            if name.endswith("_kernel"):
                monkeypatch.setattr(module, name, Recorder(value, found))
    return found


def compile_launch(kernel, args, kwargs, capability):
    """The compiled kernel of one launch, as Triton's JIT would specialise it: tensors aligned to 16 bytes, numbers by what divides them."""
    options = {k: kwargs.pop(k) for k in OPTIONS if k in kwargs}
    given = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
    assert list(given) == list(kernel.arg_names), "every parameter is given, in order"
    ones = {n for n, v in given.items() if isinstance(v, int) and v == 1}  # the JIT makes constants of them
    constexprs = {p.name: given[p.name] for p in kernel.params if p.is_constexpr or given[p.name] is None or p.name in ones}
    signature, attrs = {}, {}
    for at, (name, value) in enumerate(given.items()):
        if name in constexprs:
            signature[name] = "constexpr"
        elif isinstance(value, torch.Tensor):
            signature[name] = TYPES[value.dtype]
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
        if name not in constexprs and (isinstance(value, torch.Tensor) or value % 16 == 0):
            attrs[(at,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs, attrs)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def check(launches, count, capability=90):
    """Compile them all; their PTX."""
    assert len(launches) == count
    made = [compile_launch(kernel, args, dict(kwargs), capability) for kernel, args, kwargs in launches]
    for kernel in made:
        assert len(kernel.asm["cubin"]) > 1000
        assert f".target sm_{capability}" in kernel.asm["ptx"]
    return [kernel.asm["ptx"] for kernel in made]


def loads_of_16_bytes(ptx):
    return ptx.count("ld.global.v4.b32") + ptx.count("ld.global.v2.b64")


def empty(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype)


@pytest.mark.parametrize("dtype", kit.DTYPES, ids=str)
def test_update(launches, dtype):
    args = kit.update_args((2, 3, 130), dtype)
    update_triton.forward(*args, empty(2, 3, 130, dtype=dtype))
    update_triton.backward(args[0], *args, tuple(empty(2, 3, 130, dtype=dtype) for _ in range(4)))
    check(launches, 2)


@pytest.mark.parametrize("dtype", kit.DTYPES, ids=str)
def test_norm(launches, dtype):
    x, weight, eps, _ = kit.norm_args((2, 576), dtype, dtype)
    norm_triton.rms_norm(x, None, weight, eps, None, empty(2, 576))
    norm_triton.rms_norm(x, x, weight, eps, empty(2, 576, dtype=dtype), empty(2, 576, dtype=dtype))
    check(launches, 2)


@pytest.mark.parametrize("dtype", kit.DTYPES, ids=str)
def test_gated(launches, dtype):
    token, gates, read, old, bias, _, _ = kit.finish_args((2, 3, 576), dtype)
    gated_triton.finish(token, gates, read, old, bias, None, None, None, empty(2, 3, 576, dtype=dtype), empty(2, 3, 576))
    args = kit.step_args((2, 3, 576), dtype)
    one = [x[:, None] for x in args[:3]]
    gated_triton.finish(*one, *args[3:6], args[6][:, None], args[7], empty(2, 1, 576, dtype=dtype), args[8])
    check(launches, 2)


@pytest.mark.parametrize("dtype", kit.DTYPES, ids=str)
@pytest.mark.parametrize("heads", [(2, 9, 3, 512, 64), (1, 32, 32, 2048, 64)], ids=str)
def test_attention(launches, heads, dtype):
    b, h, k, s, e = heads
    keys = empty(b, k, s, e, dtype=dtype)
    length = torch.zeros(b, dtype=torch.int64) if h != k else None
    attention_triton.attention(empty(b, h, e, dtype=dtype), keys, keys, length, empty(b, h, e, dtype=dtype))
    if dtype == torch.float32:
        attention_triton.attention(empty(b, h, e, dtype=dtype), keys, keys, length, empty(b, h, e, dtype=dtype), 300)
    check(launches, 4 if dtype == torch.float32 else 2)


@pytest.mark.parametrize("dtype", kit.DTYPES, ids=str)
def test_rotary(launches, dtype):
    args = kit.rotary_args((2, 9, 3, 16, 64), dtype)
    rotary_triton.rotate_store(*args, empty(2, 9, 64, dtype=dtype))
    check(launches, 1)


@pytest.mark.parametrize("dtype", kit.DTYPES, ids=str)
def test_stream(launches, dtype):
    a, scale, position, sums = kit.pool_args((2, 3, 2048), dtype)
    stream_triton.pool(a, scale, position, sums, empty(2, 2048))
    stream_triton.store(*kit.store_args((2, 32, 32, 16, 64), dtype))
    check(launches, 2)


def test_released(launches):
    z, m = empty(2, 3, 2048), empty(2, 3, 2048)
    released_triton.opening(*kit.open_args((2, 3, 2048), torch.bfloat16), z, m)
    released_triton.closing(*kit.close_args((2, 3, 2048), True), z)
    check(launches, 2)


def test_an_older_device_and_wide_loads(launches):
    """The update at a model's width reads and writes 16 bytes at a time, five times each; a width that 16 does not divide cannot."""
    for d, wide in ((2048, True), (2044, False)):
        launches.clear()
        args = kit.update_args((2, 3, d), torch.bfloat16)
        update_triton.forward(*(a.contiguous() for a in args), empty(2, 3, d, dtype=torch.bfloat16))
        ptx = check(launches, 1, 80)[0]
        assert (loads_of_16_bytes(ptx) >= 4) == wide


def test_one_of_everything(launches):
    """Numbers that are 1 become constants: one sequence, one token, one head, one key, rows of one number."""
    f32 = torch.float32
    update_triton.forward(*kit.update_args((1, 1, 1), f32), empty(1, 1, 1))
    norm_triton.rms_norm(*(empty(1, 1), None), empty(1), 1e-5, None, empty(1, 1))
    args = kit.step_args((1, 1, 1), f32)
    gated_triton.finish(*(x[:, None] for x in args[:3]), *args[3:6], args[6][:, None], args[7], empty(1, 1, 1), args[8])
    attention_triton.attention(*kit.attention_args((1, 1, 1, 1, 1), f32, True), empty(1, 1, 1))
    attention_triton.attention(*kit.attention_args((1, 4, 1, 1, 64), f32, False), empty(1, 4, 64))
    rotary_triton.rotate_store(*kit.rotary_args((1, 1, 1, 1, 2), f32), empty(1, 1, 2))
    stream_triton.pool(*kit.pool_args((1, 1, 1), f32), empty(1, 1))
    stream_triton.store(*kit.store_args((1, 1, 1, 1, 1), f32))
    released_triton.opening(*kit.open_args((1, 1, 1), f32), empty(1, 1, 1), empty(1, 1, 1))
    released_triton.closing(*kit.close_args((1, 1, 1), True), empty(1, 1, 1))
    check(launches, 12)
