"""ai.lm2::QLinear's kernel: every level the same bits as the reference, however rows and threads are split; odd values, refusals, memory.

AVX-VNNI, AVX-512 and AMX run on processors without them through a library whose instructions are written out (vnni_stand_in.h); where the
processor has them, the library as it is shipped is tested too.
"""

import hashlib
import json
import os
import shutil
import subprocess

import numpy as np
import onnxruntime
import pytest
import qlinear_kit
from op_kit import FLAGS, OPS, compile_and_run, library, same, session, written_out

from lm2.export.ops.build import QLINEAR_SOURCES
from lm2.export.ops.qlinear import NAME, exact, pack, reference

LEVELS = (
    ("plain", False), ("avx2", False), ("avxvnni", False), ("avx512vnni", False), ("amx", False), ("avxvnni", True), ("avx512vnni", True), ("amx", True),
)  # fmt: skip
SHAPES = ((1, 1), (16, 2), (17, 16), (40, 17), (70, 35))
REFUSED = onnxruntime.capi.onnxruntime_pybind11_state


def at_level(proto, level, stand_in, **settings):
    try:
        return qlinear_kit.kernel(proto, level, stand_in, **settings).run
    except REFUSED.RuntimeException as error:
        assert f"QLinear: this processor or library has no {level}, which LM2_QLINEAR asks for" in str(error)
        pytest.skip(f"this machine has no {level}")


@pytest.mark.parametrize(("level", "stand_in"), LEVELS)
@pytest.mark.parametrize("bits", [4, 8])
def test_every_level_makes_the_bits_of_the_reference(bits, level, stand_in):
    rng = np.random.default_rng(bits)
    for outputs, blocks in SHAPES:
        w = qlinear_kit.matrix(rng, outputs, blocks, bits, minimum=bits == 4 or blocks == 17)
        run = at_level(qlinear_kit.model(w), level, stand_in)
        for rows in (1, 2, 7, 37):
            x = (rng.standard_normal((rows, blocks * 32)) * np.exp(rng.standard_normal((rows, 1)) * 5)).astype(np.float32)
            (y,) = run(None, {"x": x})
            same(y, reference(x, w))
            assert (np.abs(y - exact(x, w)) <= qlinear_kit.bound(x, w)).all()


BITS_OF_VERSION_1 = {4: "4ac467313c15a6a0907bb12bdec588ce", 8: "33e3bff3765aca0dfe5ffe8df5468ef2"}
"""Digests of what version 1 of the operator, whose weights lay row by row, made of `case`: its reference and each of its levels."""


def case(bits):
    """A matrix (37, 160) and x (5, 160) made of whole numbers alone, so that they are the same everywhere."""
    n = np.arange(37 * 5 * 32).reshape(37, 5, 32)
    numbers = n * 2654435761 % 4294967296 >> 28 if bits == 4 else (n * 2654435761 % 4294967296 >> 24) - 128
    d, m = ((n[..., 0] * 40503 % 65536 % k - k // 2) / 1024 for k in (61, 97))
    x = ((np.arange(5 * 160).reshape(5, 160) * 48271 % 65537 - 32768) / 4096).astype(np.float32)
    return pack(numbers, d, m, bits), x


@pytest.mark.parametrize("bits", [4, 8])
def test_the_bits_are_those_of_version_1(bits):
    w, x = case(bits)
    made = [reference(x, w), *(qlinear_kit.kernel(qlinear_kit.model(w), level).run(None, {"x": x})[0] for level in ("plain", None))]
    made.append(np.concatenate([qlinear_kit.kernel(qlinear_kit.model(w)).run(None, {"x": row[None]})[0] for row in x]))
    assert {hashlib.sha256(y.tobytes()).hexdigest()[:32] for y in made} == {BITS_OF_VERSION_1[bits]}
    made[0].view(np.uint8)[0, 0] ^= 1  # control
    assert hashlib.sha256(made[0].tobytes()).hexdigest()[:32] != BITS_OF_VERSION_1[bits]


@pytest.mark.parametrize(("level", "stand_in"), LEVELS)
@pytest.mark.parametrize("bits", [4, 8])
def test_the_largest_numbers_overflow_nothing(bits, level, stand_in):
    """All of W and all of x at either end: sums of products are as large as they get."""
    rng = np.random.default_rng(1)
    ends = (0, 15) if bits == 4 else (-128, 127)
    w = qlinear_kit.pack_numbers(np.stack([np.full((3, 32), e) for e in (*ends, ends[1])]), bits)
    x = np.stack([np.ones(96), -np.ones(96), rng.choice([-1, 1], 96), np.tile([1, -0.99999], 48)]).astype(np.float32)
    same(at_level(qlinear_kit.model(w), level, stand_in)(None, {"x": x})[0], reference(x, w))


@pytest.mark.parametrize(("level", "stand_in"), LEVELS)
def test_odd_values(level, stand_in):
    """A NaN or an infinity makes its row NaN and no other; zeros, the smallest and the largest numbers are computed as written down."""
    rng = np.random.default_rng(2)
    for bits in (4, 8):
        w = qlinear_kit.matrix(rng, 20, 18, bits)
        x = rng.standard_normal((9, 576)).astype(np.float32)
        x[1, 575], x[2, 0], x[3, 40], x[4] = np.nan, np.inf, -np.inf, 0
        x[5, 32:64], x[6, :64], x[7] = -0.0, 1e-40, 3e38
        run = at_level(qlinear_kit.model(w), level, stand_in)
        (y,) = run(None, {"x": x})
        same(y, reference(x, w))
        same(np.concatenate([run(None, {"x": row[None]})[0] for row in x]), y)
        assert np.isnan(y[1:4]).all() and not y[4].any() and np.isfinite(y[[0, 5, 6, 8]]).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_rows_one_by_one_and_any_threads_give_the_same_bits(bits):
    rng = np.random.default_rng(3)
    w = qlinear_kit.matrix(rng, 600, 18, bits)
    x = rng.standard_normal((1, 37, 576)).astype(np.float32)
    proto = qlinear_kit.model(w)
    (whole,) = qlinear_kit.kernel(proto, threads=1).run(None, {"x": x})
    same(qlinear_kit.kernel(proto, threads=2).run(None, {"x": x})[0], whole)
    same(whole, reference(x, w))
    one = qlinear_kit.kernel(proto, threads=2).run
    same(np.concatenate([one(None, {"x": x[:, t : t + 1]})[0] for t in range(37)], 1), whole)
    for cut in (1, 3, 8, 20):
        same(np.concatenate([one(None, {"x": part})[0] for part in (x[:, :cut], x[:, cut:])], 1), whole)


def test_ranks_and_no_rows():
    w = qlinear_kit.matrix(np.random.default_rng(4), 24, 2, 4)
    run = qlinear_kit.kernel(qlinear_kit.model(w)).run
    for shape in ((64,), (3, 64), (2, 1, 3, 64), (0, 64), (2, 0, 64)):
        x = np.random.default_rng(5).standard_normal(shape).astype(np.float32)
        same(run(None, {"x": x})[0], reference(x, w))


@pytest.mark.parametrize("bits", [4, 8])
def test_kernel_and_body_agree_and_the_kernel_is_what_runs(tmp_path, bits):
    rng = np.random.default_rng(6)
    w = qlinear_kit.matrix(rng, 96, 18, bits)
    proto, x = qlinear_kit.model(w), rng.standard_normal((1, 5, 576)).astype(np.float32)
    (body,) = session(proto).run(None, {"x": x})
    run = session(proto, library(), enable_profiling=True, profile_file_prefix=str(tmp_path / "kernel"))
    (y,) = run.run(None, {"x": x})
    assert (np.abs(y.astype(float) - body) <= qlinear_kit.bound(x, w)).all()
    with open(run.end_profiling(), encoding="utf-8") as f:
        ran = [e["args"]["op_name"] for e in json.load(f) if e["name"].endswith("_kernel_time")]
    assert ran == [NAME]


@pytest.mark.parametrize("field", ["d", "m", "q"])
def test_another_matrix_is_seen(field):
    """Negative control: the smallest change of one minimum, scale or number is outside the comparison, and a whole step outside the bound."""
    rng = np.random.default_rng(8)
    w = qlinear_kit.matrix(rng, 24, 18, 4)
    x = rng.standard_normal((2, 576)).astype(np.float32)
    other = w._replace(**{field: getattr(w, field).copy()})
    other[("q", "d", "m").index(field)].view(np.uint8 if field == "q" else np.uint16)[1, 7, 3] ^= 1
    (y,) = qlinear_kit.kernel(qlinear_kit.model(other)).run(None, {"x": x})
    with pytest.raises(AssertionError):
        same(y, reference(x, w))
    wrong = w._replace(m=w.m + np.float16(0.01))
    (y,) = qlinear_kit.kernel(qlinear_kit.model(wrong)).run(None, {"x": x})
    assert (np.abs(y - exact(x, w)) > qlinear_kit.bound(x, w)).any()


def test_shapes_that_do_not_go_together_are_refused_and_the_session_goes_on():
    w = qlinear_kit.matrix(np.random.default_rng(9), 24, 2, 4)
    made = qlinear_kit.kernel(qlinear_kit.model(w))
    for shape in ((1, 33), (1, 32), (1, 96), ()):
        with pytest.raises(
            REFUSED.InvalidArgument, match="QLinear: inputs x .* do not go together; with 4 bits and 24 rows of W they are x "
        ):
            made.run(None, {"x": np.zeros(shape, np.float32)})
    x = np.ones((1, 64), np.float32)
    same(made.run(None, {"x": x})[0], reference(x, w))
    for change in (
        {"d": w.d[:, :1]}, {"d": w.d[:1]}, {"d": w.d[..., :1]}, {"d": w.d.reshape(2, 32)}, {"m": w.m[:, :1]}, {"m": w.m[:1]}, {"m": w.m[:0]},
        {"m": w.m[:1, :1, 0]}, {"q": w.q[..., :2]}, {"q": w.q[:, :, :2]}, {"q": w.q[:1]}, {"q": w.q.reshape(2, 2, 256)}, {"q": w.q.swapaxes(3, 4)},
        {"q": w.q[:0], "d": w.d[:0], "m": w.m[:0]}, {"outputs": 33}, {"outputs": 16}, {"outputs": 0}, {"outputs": -1}, {"outputs": (1 << 63) - 1},
    ):  # fmt: skip
        with pytest.raises(REFUSED.InvalidArgument, match="QLinear: inputs x .* do not go together"):
            qlinear_kit.kernel(qlinear_kit.model(w._replace(**change))).run(None, {"x": x})


@pytest.mark.parametrize(("level", "stand_in"), LEVELS)
def test_what_stands_past_the_last_output_is_not_seen(level, stand_in):
    """One row and several: NaN and the largest numbers in what fills up the last tile change no bit."""
    rng = np.random.default_rng(10)
    for bits in (4, 8):
        w = qlinear_kit.matrix(rng, 21, 5, bits)
        full = w._replace(q=w.q.copy(), d=w.d.copy(), m=w.m.copy())
        full.q[1, :, :, 5:] = 255 if bits == 4 else -128
        full.d[1, :, 5:], full.m[1, :, 5:] = np.nan, np.inf
        for rows in (1, 6, 19):
            x = rng.standard_normal((rows, 160)).astype(np.float32)
            same(at_level(qlinear_kit.model(full), level, stand_in)(None, {"x": x})[0], reference(x, w))


def test_types_bits_and_levels_that_are_not_there_are_refused():
    four, eight = (qlinear_kit.matrix(np.random.default_rng(9), 24, 2, bits) for bits in (4, 8))
    for w, bits, kind in ((four, 8, "uint8"), (eight, 4, "int8"), (four, 5, "uint8")):
        with pytest.raises(REFUSED.RuntimeException, match=f"QLinear: attribute bits is {bits} and input q is {kind}; it needs"):
            qlinear_kit.kernel(qlinear_kit.model(w, bits=bits))
    for name, kind in (("x", "float16"), ("d", "float32"), ("m", "float32"), ("q", "int32")):
        with pytest.raises(REFUSED.InvalidGraph, match=rf"input parameter \({name}\) of operator \(QLinear\)"):
            qlinear_kit.kernel(qlinear_kit.model(four, kinds={name: kind}))
    with pytest.raises(REFUSED.RuntimeException, match="QLinear: this processor or library has no abacus, which LM2_QLINEAR asks for"):
        qlinear_kit.kernel(qlinear_kit.model(four), "abacus")


SANITIZED = r"""#include "qlinear.h"
#include <stdio.h>
#include <stdlib.h>
static void *exactly(size_t bytes, int step) { /* ends where the data ends */
    uint8_t *p = malloc(bytes);
    for (size_t k = 0; k < bytes; k++) p[k] = (uint8_t)(k * step % 59);
    return p;
}
int main(int count, char **words) {
    const size_t extra = count > 1 ? (size_t)atoi(words[1]) : 0;
    size_t levels, sizes[] = {1, 15, 16, 33};
    const Lm2QLevel *level = lm2_qlinear_levels(&levels);
    for (int n = 0; n < 192; n++) {
        const size_t outputs = sizes[n % 4], blocks = sizes[n / 4 % 4], rows = (size_t[]){1, 6, 19}[n / 16 % 3], at = rows * blocks;
        const int bits = n / 48 % 2 ? 4 : 8, one = n / 96;
        const size_t numbers = (outputs + 15) / 16 * 16 * blocks;
        float *x = malloc(at * 128), *want = malloc(rows * outputs * 4);
        for (size_t k = 0; k < at * 32; k++) x[k] = (float)(k % 101) - 50;
        Lm2QMatrix w = {exactly(numbers * 4 * bits, 7), exactly(numbers * 2, 3), exactly(one ? 2 : numbers * 2, 5), outputs, blocks, bits, one};
        Lm2QRows r = {exactly(at * 64, 1), exactly(at * 32, 1), exactly(at * 32, 1), exactly(at * 4, 1), exactly(at * 4, 1), blocks};
        LM2_QLINEAR_PLAIN.round(x, 0, rows, &r);
        LM2_QLINEAR_PLAIN.tiles(&w, &r, rows, 0, (outputs + 15) / 16, want);
        w.outputs += extra; /* a tile more than there is: the control */
        for (size_t k = 0; k < levels; k++) {
            if (!level[k].there()) continue;
            float *y = malloc(rows * w.outputs * 4);
            level[k].round(x, 0, rows, &r);
            level[k].tiles(&w, &r, rows, 0, (w.outputs + 15) / 16, y);
            if (memcmp(y, want, rows * outputs * 4)) return printf("%s differs\n", level[k].name), 1;
            free(y);
        }
        void *all[] = {x, want, (void *)w.q, (void *)w.d, (void *)w.m, r.number, r.high, r.low, r.step, r.sum};
        for (size_t k = 0; k < sizeof all / sizeof *all; k++) free(all[k]);
    }
    printf("ok");
    for (size_t k = 0; k < levels; k++)
        if (level[k].there()) printf(" %s", level[k].name);
    return puts(""), 0;
}
"""


def test_nothing_is_read_or_written_out_of_bounds(tmp_path):
    """All levels under AddressSanitizer; with a tile more than there is, a control, it is seen."""
    (tmp_path / "main.c").write_text(SANITIZED)
    sources = [tmp_path / "main.c", *(OPS / name for name in QLINEAR_SOURCES[1:])]
    flags = (
        "-O0",
        "-fsanitize=address,signed-integer-overflow,shift",
        "-fno-sanitize-recover=all",
        written_out("vnni"),
    )
    code, said, complaint = compile_and_run(tmp_path, sources, flags, (), OPS)
    assert (code, said[:2], complaint) == (0, "ok", "")
    control = subprocess.run(
        [tmp_path / "program", "16"], capture_output=True, text=True, env={k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    )
    assert control.returncode != 0 and "heap-buffer-overflow" in control.stderr


def test_dot_products_of_arm(tmp_path):
    """Where a cross compiler and an emulator are: the same bits as plain C, with and without the instruction; sums shifted too little, a control, are seen."""
    cross, emulator = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if not (cross and emulator):
        pytest.skip("this machine has no aarch64-linux-gnu-gcc or no qemu-aarch64")
    (tmp_path / "main.c").write_text(SANITIZED)
    neon = (OPS / "qlinear_neon.c").read_text()
    assert neon.count("vshlq_n_s32(above, 8)") == 1
    (tmp_path / "right.c").write_text(neon)
    (tmp_path / "wrong.c").write_text(neon.replace("vshlq_n_s32(above, 8)", "vshlq_n_s32(above, 7)"))
    said = {}
    for name, processor in (("right", "max"), ("right", "cortex-a53"), ("wrong", "max")):
        program = tmp_path / name
        if not program.exists():
            sources = [tmp_path / "main.c", OPS / "qlinear_plain.c", tmp_path / f"{name}.c"]
            subprocess.run([cross, *FLAGS, "-O1", "-static", f"-I{OPS}", *sources, "-o", program, "-lm"], check=True, capture_output=True)
        said[name, processor] = subprocess.run([emulator, "-cpu", processor, program], capture_output=True, text=True).stdout
    assert said == {("right", "max"): "ok neondot\n", ("right", "cortex-a53"): "ok\n", ("wrong", "max"): "neondot differs\n"}
