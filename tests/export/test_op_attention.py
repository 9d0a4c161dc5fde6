"""ai.lm2::ChunkAttention's kernel: every level the same bits as the reference, however rows, threads and batches are split; memory, odd values, refusals.

AVX-512 runs on processors without it through a library whose instructions are written out (avx512_stand_in.h); where the processor has it, the
library as it is shipped is tested too.
"""

import json
import os
import subprocess

import attention_kit as kit
import numpy as np
import onnxruntime
import pytest
from op_kit import OPS, compile_and_run, library, same, session, written_out

from lm2.export.ops.chunk_attention import NAME, reference

LEVELS = (("plain", False), ("avx2", False), ("avx512", False), ("avx512", True))
REFUSED = onnxruntime.capi.onnxruntime_pybind11_state

# (heads, key/value heads, width, rows of the caches, filled, positions of the call, more of kit.call)
SHAPES = (
    (4, 2, 16, 40, 7, 5, {}),
    (1, 1, 1, 9, 0, 9, {}),  # W full, nothing before
    (9, 3, 64, 300, 256, 1, {}),
    (9, 3, 64, 140, 120, 20, {}),  # W full
    (3, 3, 128, 290, 290, 1, {"writes": False, "turns": 0}),
    (3, 3, 20, 270, 270, 7, {"writes": False, "turns": 0, "bias": (1, 1, 7, 270)}),
    (6, 2, 7, 150, 131, 19, {"bias": (1, 6, 19, 150)}),
    (5, 1, 70, 140, 128, 3, {"turns": 11}),
    (2, 2, 33, 200, 0, 70, {"bias": (1, 1, 1, 200)}),
    (71, 1, 5, 60, 3, 2, {}),
    (8, 4, 8, 400, [0, 390, 129], 10, {"bias": (3, 1, 1, 1)}),
    (4, 4, 6, 30, [0, 30], 4, {"writes": False, "turns": 0}),  # one sees nothing
)


def at_level(proto, level, stand_in, **settings):
    try:
        return kit.kernel(proto, level, stand_in, **settings)
    except REFUSED.RuntimeException as error:
        assert f"ChunkAttention: this processor or library has no {level}, which LM2_ATTENTION asks for" in str(error)
        pytest.skip(f"this machine has no {level}")


@pytest.fixture(scope="module")
def cases():
    """(heads, call, what it makes) of each shape."""
    rng = np.random.default_rng(0)
    made = []
    for heads, groups, e, rows, past, t, more in SHAPES:
        given = kit.call(rng, t, past, heads, groups, e, rows, **more)
        made.append((heads, given, reference(given, heads)))
    return made


@pytest.mark.parametrize(("level", "stand_in"), LEVELS)
def test_every_level_makes_the_bits_of_the_reference(cases, level, stand_in):
    for heads, given, want in cases:
        for got, right in zip(at_level(kit.model(heads), level, stand_in).run(None, kit.feed(given)), want, strict=True):
            same(got, right)


def test_it_is_attention(cases):
    """Within the bound of docs/ops.md of float64, and far within it."""
    worst = max(kit.near(want[0], given, heads) for heads, given, want in cases)
    assert 0 < worst < 0.1


@pytest.mark.parametrize("wrong", ["mask", "turn", "head", "scale", "bias"])
def test_another_attention_is_seen(wrong):
    """Negative controls: one key more or less, angles of the position before, another key/value head, a wrong scale, a bias one place on."""
    from lm2.export.ops import chunk_attention

    rng = np.random.default_rng(1)
    given = kit.call(rng, 5, 30, 4, 2, 16, 40, bias=(1, 1, 5, 40))
    (y, *_) = kit.kernel(kit.model(4)).run(None, kit.feed(given))
    kit.near(y, given, 4)
    if wrong == "turn":
        other = given._replace(cos=np.roll(given.cos, 1, 0), sin=np.roll(given.sin, 1, 0))  # the caches' keys are turned as they were
    elif wrong == "head":
        other = given._replace(past_key=given.past_key[:, ::-1].copy())
    elif wrong == "bias":
        other = given._replace(bias=np.roll(given.bias, 1, 3))
    else:
        other = given
    with pytest.MonkeyPatch.context() as patch:
        if wrong == "mask":
            right = chunk_attention.placed
            patch.setattr(chunk_attention, "placed", lambda *a: (p := right(*a))._replace(seen=p.seen + 1))
        with pytest.raises(AssertionError):
            kit.near(y, other, 4, 0.26 if wrong == "scale" else 0.0)


@pytest.mark.parametrize(("heads", "groups", "e", "turns"), [(9, 3, 16, None), (2, 2, 33, None), (5, 1, 8, 0)])
def test_any_split_of_a_chunk_and_any_threads_give_the_same_bits(heads, groups, e, turns):
    rng = np.random.default_rng(2)
    t, past, rows = 70, 100, 180
    given = kit.call(rng, t, past, heads, groups, e, rows, turns=turns)
    proto = kit.model(heads)
    runs = {threads: kit.kernel(proto, threads=threads) for threads in (1, 2)}
    whole = runs[1].run(None, kit.feed(given))
    for got, want in zip(runs[2].run(None, kit.feed(given)), whole, strict=True):
        same(got, want)
    splits = [[cut, t - cut] for cut in range(1, t)] + [[1] * t, [3] * 23 + [1], [64, 6]]
    for n, split in enumerate(splits):
        at, made, caches = 0, [], (given.past_key, given.past_value)
        for count in split:
            part = given._replace(x=given.x[:, at : at + count], past_length=given.past_length + at, past_key=caches[0], past_value=caches[1])
            y, *caches = runs[1 + n % 2].run(None, kit.feed(part))
            made.append(y)
            at += count
        for got, want in zip((np.concatenate(made, 1), *caches), whole, strict=True):
            same(got, want)


@pytest.mark.parametrize("writes", [True, False])
def test_rows_that_are_not_written_are_read_alike_in_any_split(writes):
    """Queries alone: the same bits for one row and 64, of one or two threads, enough of them that spans are computed apart or not."""
    rng = np.random.default_rng(3)
    given = kit.call(rng, 64, 900, 6, 3, 64, 1000, writes=writes, turns=0)
    proto = kit.model(6)
    one, two = kit.kernel(proto), kit.kernel(proto, threads=2)
    whole = one.run(None, kit.feed(given))
    caches = whole[1:] if writes else (given.past_key, given.past_value)
    same(two.run(None, kit.feed(given))[0], whole[0])
    for run in (one, two):
        for at in (0, 1, 31, 63):
            past = given.past_length + (at if writes else 0)
            part = given._replace(x=given.x[:, at : at + 1], past_length=past, past_key=caches[0], past_value=caches[1])
            same(run.run(None, kit.feed(part))[0], whole[0][:, at : at + 1])


def test_sequences_with_positions_of_their_own_are_what_each_is_alone():
    rng = np.random.default_rng(4)
    given = kit.call(rng, 6, [0, 130, 17, 294], 6, 2, 24, 300, bias=(4, 6, 6, 300))
    run = kit.kernel(kit.model(6), threads=2)
    whole = run.run(None, kit.feed(given))
    alone = [run.run(None, {n: a[i : i + 1] if len(a) == 4 else a for n, a in kit.feed(given).items()}) for i in range(4)]
    for n, got in enumerate(whole):
        same(got, np.concatenate([a[n] for a in alone]))
    shared = given._replace(past_length=np.array([17]))
    every = given._replace(past_length=np.full(4, 17))
    for got, want in zip(run.run(None, kit.feed(shared)), run.run(None, kit.feed(every)), strict=True):
        same(got, want)


def test_no_positions_and_nothing_to_see():
    rng = np.random.default_rng(5)
    run = kit.kernel(kit.model(4))
    for past in (0, 9, [3, 0]):
        given = kit.call(rng, 0, past)
        y, *caches = run.run(None, kit.feed(given))
        assert y.shape == (np.size(past), 0, 64)
        for got, want in zip(caches, given[1:3], strict=True):
            same(got, want)
    y, *_ = run.run(None, kit.feed(kit.call(rng, 3, 0, writes=False)))
    assert y.shape == (1, 3, 64) and not y.any()
    none = kit.call(rng, 2, np.zeros(0, np.int64))
    assert run.run(None, kit.feed(none))[0].shape == (0, 2, 64)


def test_odd_values_touch_what_sees_them_and_nothing_else():
    """A NaN or an infinity in one sequence, in a later row, or in what is not filled, changes no other bit."""
    rng = np.random.default_rng(6)
    given = kit.call(rng, 8, [5, 150, 20], 4, 2, 16, 200)
    run = kit.kernel(kit.model(4), threads=2)
    clean = run.run(None, kit.feed(given))
    for odd in (np.nan, np.inf, -np.inf):
        x, key, value = given.x.copy(), given.past_key.copy(), given.past_value.copy()
        x[0, 5, 4 * 16 + 3] = odd  # a key of row 5
        x[2, 2, 0] = odd  # a query of row 2, head 0
        key[1, 1, 40, 3] = odd
        key[0, :, 100:], value[2, :, 60:] = odd, odd  # not filled
        changed = given._replace(x=x, past_key=key, past_value=value)
        got = run.run(None, kit.feed(changed))
        for a, b in zip(got, reference(changed, 4), strict=True):
            same(a, b)
        y, want = (a[0].reshape(3, 8, 4, 16) for a in (got, clean))
        same(y[0, :5], want[0, :5])
        same(y[0, :, 2:], want[0, :, 2:])
        same(y[1, :, :2], want[1, :, :2])
        same(y[2, [0, 1, 3, 4, 5, 6, 7]], want[2, [0, 1, 3, 4, 5, 6, 7]])
        assert np.isnan(y[2, 2, 0]).all()
        if np.isnan(odd):
            assert np.isnan(y[0, 5:, :2]).all() and np.isnan(y[1, :, 2:]).all()


@pytest.mark.parametrize(("level", "stand_in"), LEVELS)
def test_scores_of_any_size(level, stand_in):
    """Largest and smallest numbers, a bias that hides rows, all of them, or a whole span."""
    rng = np.random.default_rng(7)
    run = at_level(kit.model(2), level, stand_in)
    for size in (1e-42, 1e-25, 1e3, 3e18, 3e38):
        given = kit.call(rng, 3, 150, 2, 1, 12, 160, writes=False, turns=0, bias=(1, 2, 3, 160))
        bias = given.bias.copy()
        bias[0, 0, :, :128], bias[0, 1, 1], bias[0, 1, 2, 5] = -np.inf, -np.inf, 80
        given = given._replace(x=np.float32(given.x / 5 * size), past_value=np.float32(given.past_value / 10 * size), bias=bias)
        y, *_ = run.run(None, kit.feed(given))
        same(y, reference(given, 2)[0])
        assert np.isnan(y[0, 1, 12:]).all()
        if size < 1e18:
            assert np.isfinite(y[0, :, :12]).all()


def test_present_may_be_the_memory_of_past():
    """Bound to one buffer, or an intermediate value of the graph that nobody reads again: written in place, and with memory of its own the same."""
    from onnx import TensorProto, helper

    rng = np.random.default_rng(8)
    given = kit.call(rng, 3, 7)
    proto = kit.model(4)
    want = kit.kernel(proto).run(None, kit.feed(given))
    run, value = kit.kernel(proto), onnxruntime.OrtValue.ortvalue_from_numpy
    binding, held = run.io_binding(), {n: value(a.copy()) for n, a in kit.feed(given).items()}
    for name, one in held.items():
        binding.bind_ortvalue_input(name, one)
    binding.bind_output("y")
    for name in ("key", "value"):
        binding.bind_ortvalue_output(f"present_{name}", held[f"past_{name}"])
    run.run_with_iobinding(binding)
    for got, right in zip((binding.get_outputs()[0], held["past_key"], held["past_value"]), want, strict=True):
        same(got.numpy(), right)

    (one,) = proto.graph.node
    shape = list(given.past_key.shape)
    del proto.graph.output[1:]
    for n, name in enumerate(("key", "value")):
        one.input[1 + n] = f"own_{name}"
        proto.graph.node.insert(0, helper.make_node("Neg", [f"past_{name}"], [f"own_{name}"]))
        proto.graph.node.append(helper.make_node("Neg", [f"present_{name}"], [f"last_{name}"]))
        proto.graph.value_info.extend(helper.make_tensor_value_info(f"{v}_{name}", TensorProto.FLOAT, shape) for v in ("own", "present"))
        proto.graph.output.append(helper.make_tensor_value_info(f"last_{name}", TensorProto.FLOAT, shape))
    negative = given._replace(past_key=-given.past_key, past_value=-given.past_value)
    y, *last = kit.kernel(proto).run(None, kit.feed(negative))
    for got, right in zip((y, -last[0], -last[1]), want, strict=True):
        same(got, right)


def test_without_presents_where_nothing_is_written():
    rng = np.random.default_rng(9)
    given = kit.call(rng, 3, 30, writes=False)
    want, *_ = reference(given, 4)
    same(kit.kernel(kit.model(4, outputs=1)).run(None, kit.feed(given))[0], want)
    same(kit.kernel(kit.model(4, outputs=3)).run(None, kit.feed(given))[0], want)
    for outputs in (1, 2):
        with pytest.raises(REFUSED.InvalidArgument, match="outputs present_key and present_value go together, and are needed where x has"):
            kit.kernel(kit.model(4, outputs=outputs)).run(None, kit.feed(kit.call(rng, 3, 30)))


def test_what_does_not_go_together_is_refused_in_a_line_and_the_session_goes_on():
    rng = np.random.default_rng(10)
    given = kit.call(rng, 3, [7, 8])
    run = kit.kernel(kit.model(4))
    zeros = lambda *shape: np.zeros(shape, np.float32)  # noqa: E731
    for change in (
        {"x": zeros(2, 3, 96)}, {"x": zeros(2, 3, 129)}, {"x": zeros(1, 3, 128)}, {"past_key": zeros(2, 2, 41, 16)}, {"past_value": zeros(2, 2, 40, 8)},
        {"past_key": zeros(2, 3, 40, 16), "past_value": zeros(2, 3, 40, 16)}, {"past_key": zeros(2, 0, 40, 16), "past_value": zeros(2, 0, 40, 16)},
        {"past_key": zeros(2, 2, 40, 0), "past_value": zeros(2, 2, 40, 0)}, {"past_length": np.zeros(3, np.int64)}, {"past_length": np.zeros(0, np.int64)},
        {"cos": zeros(40, 9), "sin": zeros(40, 9)}, {"cos": zeros(39, 8)}, {"cos": zeros(0, 0), "sin": zeros(0, 0)}, {"bias": zeros(1, 2, 1, 1)},
        {"bias": zeros(1, 1, 1, 39)}, {"bias": zeros(3, 1, 1, 1)}, {"bias": zeros(1, 1, 0, 1)},
    ):  # fmt: skip
        with pytest.raises(REFUSED.InvalidArgument, match="ChunkAttention: inputs x .* do not go together; with 4 heads they are x ") as seen:
            run.run(None, kit.feed(given) | change)
        assert str(seen.value).count("\n") == 0
    for change, said in (
        ({"x": zeros(3, 128)}, "input x has rank 2; it needs rank 3"),
        ({"past_length": np.zeros((), np.int64)}, "input past_length has rank 0; it needs rank 1"),
        ({"past_length": np.array([7, 38])}, "past_length of sequence 1 is 38; caches of 40 rows and 3 to be written need 0 to 37"),
        ({"past_length": np.array([-1])}, "past_length of sequence 0 is -1; caches of 40 rows"),
        ({"past_length": np.array([2**62, 0])}, f"past_length of sequence 0 is {2**62}; caches of 40 rows"),
        ({"cos": zeros(10, 8), "sin": zeros(10, 8)}, "cos and sin have 10 rows; sequence 1 at position 8 with 3 more needs 11"),
    ):
        with pytest.raises(REFUSED.InvalidArgument, match=f"ChunkAttention: {said}"):
            run.run(None, kit.feed(given) | change)
    for got, want in zip(run.run(None, kit.feed(given)), reference(given, 4), strict=True):
        same(got, want)


def test_attributes_types_and_levels_that_are_not_there_are_refused():
    for heads in (0, -3, 2**40):
        with pytest.raises(REFUSED.RuntimeException, match=f"ChunkAttention: attribute heads is {heads}; it needs 1 to"):
            kit.kernel(kit.model(heads))
    with pytest.raises(REFUSED.RuntimeException, match="ChunkAttention: attribute scale is inf; it needs a finite number"):
        kit.kernel(kit.model(4, scale=float("inf")))
    for name, kind in (("x", "float16"), ("past_length", "int32"), ("bias", "float64")):
        with pytest.raises(REFUSED.InvalidGraph, match=rf"input parameter \({name}\) of operator \(ChunkAttention\)"):
            kit.kernel(kit.model(4, kinds={name: kind}))
    with pytest.raises(REFUSED.RuntimeException, match="ChunkAttention: this processor or library has no abacus, which LM2_ATTENTION asks for"):
        kit.kernel(kit.model(4), "abacus")


@pytest.mark.parametrize("scale", [1.0, -0.3, 0.0])
def test_kernel_and_body_agree_and_the_kernel_is_what_runs(tmp_path, scale):
    rng = np.random.default_rng(11)
    given, proto = kit.call(rng, 9, [20, 3]), kit.model(4, scale=scale)
    body = session(proto).run(None, kit.feed(given))
    run = session(proto, library(), enable_profiling=True, profile_file_prefix=str(tmp_path / "kernel"))
    made = run.run(None, kit.feed(given))
    for y in (made[0], body[0]):
        kit.near(y, given, 4, scale)
    for got, want in zip(made, reference(given, 4, scale), strict=True):
        same(got, want)
    with open(run.end_profiling(), encoding="utf-8") as f:
        ran = [e["args"]["op_name"] for e in json.load(f) if e["name"].endswith("_kernel_time")]
    assert ran == [NAME]


SANITIZED = r"""#include "chunk_attention.h"
#include <stdio.h>
#include <stdlib.h>
static uint64_t seed = 1;
static size_t draw(size_t n) { return seed = seed * 6364136223846793005u + 1442695040888963407u, (size_t)(seed >> 33) % n; }
static float *numbers(size_t n) { /* ends where the data ends */
    float *p = malloc(n * 4);
    for (size_t k = 0; k < n; k++) p[k] = (float)draw(200) / 50 - 2;
    return p;
}
static void run(Lm2AWork *w, const Lm2ALevel *level, int apart) {
    w->level = level;
    float *room = malloc(lm2_attention_rooms(w) * 4);
    lm2_attention_place(w, room);
    const size_t spans = w->spans, tiles = w->b * w->k * w->tiles;
    if (!apart) w->spans = 0;
    for (size_t n = 0; n < w->b * w->k && w->present[0]; n++) lm2_attention_copy(w, n);
    lm2_attention_write(w, 0, w->b * w->t);
    for (size_t n = 0; n < tiles && w->spans == 0; n++) lm2_attention_tile(w, n);
    for (size_t n = tiles * w->spans; n > 0; n--) lm2_attention_span(w, n - 1);
    for (size_t n = 0; n < tiles && w->spans; n++) lm2_attention_join(w, n);
    w->spans = spans;
    free(room);
}
int main(int count, char **words) {
    const size_t extra = count > 1 ? (size_t)atoi(words[1]) : 0;
    const size_t widths[] = {1, 4, 7, 8, 20, 32, 33, 64, 70}, pasts[] = {0, 1, 31, 32, 120, 128, 129, 260};
    size_t levels, apart = 0;
    const Lm2ALevel *level = lm2_attention_x86(&levels);
    for (int n = 0; n < ROUNDS; n++) {
        Lm2AWork w = {.b = 1 + draw(2), .t = 1 + draw(draw(3) ? 4 : 40), .k = 1 + draw(3), .g = 1 + draw(4), .e = widths[draw(9)], .scale = 0.3f};
        int64_t length[2] = {(int64_t)pasts[draw(8)], (int64_t)pasts[draw(8)]};
        w.h = w.k * w.g, w.length = length, w.own_length = w.b > 1, w.writes = draw(3) > 0, w.w = draw(2) ? w.e / 2 : 0;
        w.W = (size_t)(length[0] > length[1] && w.b > 1 ? length[0] : length[w.b - 1]) + w.t * (size_t)w.writes + draw(2);
        const size_t caches = w.b * w.k * w.W * w.e, out = w.b * w.t * w.h * w.e, positions = w.W + w.t;
        float *x = numbers(w.b * w.t * (w.h + (w.writes ? 2 * w.k : 0)) * w.e), *k = numbers(caches), *v = numbers(caches), *cos = numbers(positions * w.w),
              *sin = numbers(positions * w.w), *bias = numbers(w.h * w.t * w.W), *y = malloc(out * 4), *want = malloc(out * 4), *pk = malloc(caches * 4), *pv = malloc(caches * 4);
        w.x = x, w.past[0] = k, w.past[1] = v, w.cos = cos, w.sin = sin, w.y = want;
        if (draw(2)) w.bias = bias, w.bias_step[1] = w.t * w.W, w.bias_step[2] = w.W, w.bias_step[3] = 1;
        if (w.writes) w.present[0] = pk, w.present[1] = pv;
        run(&w, &LM2_A_PLAIN, 1);
        w.y = y, w.t += extra; /* more than there are: the control */
        for (size_t l = 0; l < 2 * levels + 1; l++) {
            if (l && !level[(l - 1) / 2].there()) continue;
            memset(y, 0xff, out * 4);
            run(&w, l ? &level[(l - 1) / 2] : &LM2_A_PLAIN, l % 2);
            if (memcmp(y, want, out * 4)) return printf("%s differs\n", w.level->name), 1;
        }
        apart += w.spans > 0;
        void *all[] = {x, k, v, cos, sin, bias, y, want, pk, pv};
        for (size_t a = 0; a < sizeof all / sizeof *all; a++) free(all[a]);
    }
    printf("ok %d\n", apart > ROUNDS / 8 && apart < ROUNDS - ROUNDS / 8);
    return 0;
}
"""


def test_nothing_is_read_or_written_out_of_bounds(tmp_path):
    """All levels, spans apart and not, under AddressSanitizer and UndefinedBehaviorSanitizer; with a position more than there is, a control, it is seen."""
    (tmp_path / "main.c").write_text(SANITIZED)
    sources = [tmp_path / "main.c", *(OPS / f"chunk_attention_{part}.c" for part in ("core", "plain", "x86"))]
    flags = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-DROUNDS=150", written_out("avx512"))
    assert compile_and_run(tmp_path, sources, flags, (), OPS) == (0, "ok 1\n", "")
    control = subprocess.run(
        [tmp_path / "program", "1"], capture_output=True, text=True, env={k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    )
    assert control.returncode != 0 and "heap-buffer-overflow" in control.stderr
