"""What the tests of the custom op share: one-node models, sessions with and without the library, inputs, tolerances, C compilers."""

import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

NAMES = ("i", "f", "z", "old")
OPS = Path(__file__).parent.parent / "export" / "ops"
DRIVER = Path(__file__).parent / "export" / "op_driver.c"
FLAGS = ("-std=c11", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")


@functools.cache
def library():
    """The library, built once for this test run outside the user's cache."""
    from lm2.export.ops.build import build, find_compiler, suffix

    need_compiler()
    find_compiler()
    folder = Path(tempfile.mkdtemp(prefix="lm2-test-ops-"))
    return build(folder / f"ops{suffix()}")


def need_compiler():
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        pytest.skip("there is no C compiler on this machine")


def compiler():
    need_compiler()
    return next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))))


def compile_and_run(folder, sources, flags, arguments, include=OPS):
    """Compile C sources into a program and run it; (exit code, stdout, stderr). A program that does not compile fails the test."""
    program = folder / "program"
    words = [compiler(), *FLAGS, *flags, f"-I{include}", *map(str, sources), "-o", str(program), "-lm"]
    made = subprocess.run(words, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    env = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}  # a sanitizer must be the first library of its process
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True, timeout=300, env=env)
    return done.returncode, done.stdout, done.stderr


def model(kind="float32", opset=23, shape=None, body=True, kinds=None):
    """A model of one GatedMemoryUpdate node, inputs i, f, z, old, output new."""
    from onnx import TensorProto, helper

    from lm2.export.ops.function import function, node, opset_import

    element = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "float64": TensorProto.DOUBLE}
    inputs = [helper.make_tensor_value_info(n, element[k], shape) for n, k in zip(NAMES, kinds or [kind] * 4, strict=True)]
    output = helper.make_tensor_value_info("new", element[kind], shape)
    graph = helper.make_graph([node(*NAMES, "new", "update")], "one", inputs, [output])
    imports = [helper.make_opsetid("", opset), opset_import()]
    return helper.make_model(graph, opset_imports=imports, functions=[function(opset)] if body else [], ir_version=10)


def session(proto, path=None, threads=1, **settings):
    """An ONNX Runtime session on the CPU, with the library at `path` registered if one is given."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    for name, value in settings.items():
        setattr(options, name, value)
    if path is not None:
        options.register_custom_ops_library(str(path))
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def written_out(name):
    """The compiler's flag that takes instructions from tests/export/NAME_stand_in.h."""
    return f'-DLM2_{name.upper()}_STAND_IN="{Path(__file__).parent / "export" / name}_stand_in.h"'


@functools.cache
def stand_in_library():
    """The library with the instructions that this processor may lack written out in C."""
    from lm2.export.ops.build import C_SOURCES, suffix

    out = Path(tempfile.mkdtemp(prefix="lm2-test-ops-")) / f"ops{suffix()}"
    words = [compiler(), *FLAGS, "-O1", "-fPIC", "-shared", written_out("vnni"), written_out("avx512")]
    made = subprocess.run([*words, *(OPS / name for name in C_SOURCES), "-o", out], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return out


def kernel_at(choice, proto, level=None, stand_in=False, threads=1, **settings):
    """A session with the library registered, whose kernels use `level`, or the processor's best. choice: the environment variable that asks for one."""
    with mock.patch.dict(os.environ, {choice: level or ""}):
        return session(proto, stand_in_library() if stand_in else library(), threads, **settings)


def feed(arrays):
    return dict(zip(NAMES, arrays, strict=True))


def rows(rng, shape, dtype, scale=4.0):
    return [np.asarray(rng.standard_normal(shape) * scale).astype(dtype) for _ in NAMES]


ODD = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, 3e38, -3e38, 88.0, -87.0, 200.0, -200.0, 65519.0, 6e-8)


def with_odd_values(rng, arrays, share=0.1):
    """The arrays with some elements replaced by NaN, infinities, zeros, subnormals and the largest numbers."""
    with np.errstate(over="ignore", under="ignore"):
        odd = np.array(ODD).astype(arrays[0].dtype)
        return [np.where(rng.random(a.shape) < share, rng.choice(odd, a.shape), a).astype(a.dtype) for a in arrays]


def same(got, want):
    """Bit for bit, NaN for NaN."""
    assert got.dtype == np.float32 and got.shape == want.shape
    odd = np.isnan(want)
    np.testing.assert_array_equal(np.isnan(got), odd)
    np.testing.assert_array_equal(got[~odd].view(np.int32), want[~odd].view(np.int32))


def check(got, arrays, ulp=5):
    """`got` is the update of `arrays`: NaN where the reference has NaN, the same infinities, else near in each element.

    Float32: `ulp` units of 2^-23 of |written| + |kept| (the kernel is within 4). Float16: that, rounded, so 2 units in the last place of the larger part. Where a gate is below 2^-126 it may count as 0, so an infinite or huge old row is judged with both.
    """
    from lm2.export.ops.reference import gated_memory_update

    want = gated_memory_update(*arrays)
    assert got.dtype == want.dtype and got.shape == want.shape
    i, f, z, old = (a.astype(np.float64) for a in arrays)
    with np.errstate(all="ignore"):
        written, keep = np.tanh(z) / (1 + np.exp(-i)), 1 / (1 + np.exp(-f))
        flushed = (written + np.where(keep < 2.0**-125, 0.0, keep) * old).astype(want.dtype)
        size = np.abs(written) + np.abs(keep * old)
        info = np.finfo(want.dtype)
        near = ulp * 2.0**-23 * size + 2.0**-124 if want.dtype == np.float32 else 2 * 2.0**-10 * size + 2.0**-23
        good = np.zeros(want.shape, bool)
        for w in (want, flushed):
            wide, have = w.astype(np.float64), got.astype(np.float64)
            edge = (
                np.isinf(have)
                & (np.abs(np.where(np.isinf(wide), have, wide)) >= float(info.max) * (1 - 1e-6))
                & (np.sign(have) == np.sign(wide))
            )
            edge |= np.isinf(wide) & (np.abs(have) >= float(info.max) * (1 - 1e-6)) & (np.sign(have) == np.sign(wide))
            good |= (np.isnan(wide) & np.isnan(have)) | (wide == have) | edge | (np.abs(have - wide) <= near)
    bad = np.argwhere(~good)
    assert not len(bad), (
        f"{len(bad)} wrong; first at {bad[0]}: {[a[tuple(bad[0])] for a in arrays]} gave {got[tuple(bad[0])]}, expected {want[tuple(bad[0])]}"
    )
