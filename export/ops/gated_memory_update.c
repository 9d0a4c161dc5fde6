/* ai.lm2::GatedMemoryUpdate on a CPU: new = sigmoid(i) * tanh(z) + sigmoid(f) * old, elementwise, float32 and float16.

Knows arrays of n elements; no ONNX Runtime, no shapes, no threads. Plain C11 that gcc and clang vectorise at -O3. No state: every
function may run on any number of threads at once. Inputs may overlap each other; the output overlaps none of them.
Every element is computed by the same operations wherever it stands (fused multiply-adds are written out and contraction is off), so on one
machine the result does not depend on n, on the alignment or on how rows are split over calls and threads.

In float32 the error is at most 4 ulp (5e-7) of |sigmoid(i) tanh(z)| + |sigmoid(f) old|; small z keep their digits. sigmoid is 0 below -104 and
keeps subnormals unless the caller flushes them.
NaN in gives NaN out. Infinities follow from the equation: sigmoid(-inf) * inf is 0 * inf, a NaN. float16 is widened, computed in float32 and
rounded once, to nearest even. */

#include "gated_memory_update.h"

#include <string.h>

#if defined(__GNUC__) || defined(__clang__)
#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define FMAF __builtin_fmaf
#else
#define ALWAYS_INLINE static inline
#define FMAF(a, b, c) ((a) * (b) + (c))
#endif

#if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
#define X86_LEVELS 1
#else
#define X86_LEVELS 0
#endif

#if defined(__aarch64__) || defined(__ARM_FEATURE_FMA)
#define BASE_FUSED 1 /* every such processor has the instruction */
#else
#define BASE_FUSED 0
#endif

#define ROUNDER 12582912.0f /* 1.5 * 2^23: added to a small float it leaves the nearest integer in the low bits */

ALWAYS_INLINE uint32_t bits_of(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

ALWAYS_INLINE float float_of(uint32_t u) {
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

ALWAYS_INLINE float multiply_add(float a, float b, float c, int fused) { return fused ? FMAF(a, b, c) : a * b + c; }

/* x = n ln 2 + r with |r| <= ln 2 / 2, for x in [-105, 0]. Returns e^r - 1, relative error 2e-8 plus rounding, and n as the bits of an
integer. The coefficients are the weighted minimax fit of (e^r - 1 - r) / r^2. A NaN stays a NaN; n is then any number. */
ALWAYS_INLINE float reduced_expm1(float x, uint32_t *n, int fused) {
    const float k = multiply_add(x, 1.44269504f, ROUNDER, fused);
    const float whole = k - ROUNDER;
    float r = multiply_add(whole, -0.693145752f, x, fused); /* ln 2 in two parts; the first is exact times any n here */
    r = multiply_add(whole, -1.42860677e-6f, r, fused);
    float q = multiply_add(r, 0x1.6bebfep-10f, 0x1.1227b0p-7f, fused);
    q = multiply_add(q, r, 0x1.555674p-5f, fused);
    q = multiply_add(q, r, 0x1.5554b0p-3f, fused);
    q = multiply_add(q, r, 0x1.fffffep-2f, fused);
    *n = bits_of(k) - bits_of(ROUNDER);
    return multiply_add(r * r, q, r, fused);
}

ALWAYS_INLINE float magnitude(float x, float largest) {
    const float a = float_of(bits_of(x) & 0x7fffffffu);
    return a > largest ? largest : a; /* a NaN compares false and stays */
}

/* e^-|x|, from 1 down to 0. */
ALWAYS_INLINE float decay(float x, int fused) {
    uint32_t n;
    const float p = reduced_expm1(-magnitude(x, 105.0f), &n, fused);
    /* 2^n in two steps: n reaches -151, and only the second product may be subnormal. */
    return (1.0f + p) * float_of((n + 64u + 127u) << 23) * 0x1p-64f;
}

/* e^-2|z| - 1, from 0 down to -1, exact to a few ulp near 0 as well. */
ALWAYS_INLINE float decay_minus_one(float z, int fused) {
    uint32_t n;
    const float p = reduced_expm1(-2.0f * magnitude(z, 10.0f), &n, fused);
    const float power = float_of((n + 127u) << 23);
    return multiply_add(power, p, power - 1.0f, fused);
}

ALWAYS_INLINE float update(float i, float f, float z, float old, int fused) {
    const float ei = decay(i, fused);
    const float ef = decay(f, fused);
    const float ez = decay_minus_one(z, fused);
    const float tanh_up = float_of((bits_of(ez) & 0x7fffffffu) | (bits_of(z) & 0x80000000u)); /* tanh(z) * (2 + ez) */
    const float written = ((i < 0.0f ? ei : 1.0f) * tanh_up) / ((1.0f + ei) * (2.0f + ez)); /* one division for two gates */
    const float kept = (f < 0.0f ? ef : 1.0f) / (1.0f + ef) * old;
    return written + kept;
}

ALWAYS_INLINE float from_half(uint16_t half) {
    const uint32_t h = half, magnitude_bits = h & 0x7fffu;
    const uint32_t normal = (magnitude_bits << 13) + ((magnitude_bits >= 0x7c00u ? 224u : 112u) << 23);
    const uint32_t small = bits_of((float)(int32_t)magnitude_bits * 0x1p-24f); /* no subnormal float on the way: flushing modes change nothing */
    return float_of((magnitude_bits < 0x0400u ? small : normal) | (h & 0x8000u) << 16);
}

ALWAYS_INLINE uint16_t to_half(float x) {
    const uint32_t u = bits_of(x), a = u & 0x7fffffffu;
    const uint32_t normal = (a + 0x0fffu + ((a >> 13) & 1u) - (112u << 23)) >> 13;
    const uint32_t small = bits_of(float_of(a < 0x38800000u ? a : 0u) + 0.5f) - bits_of(0.5f); /* 0.5f has the ulp of half's subnormals */
    const uint32_t special = a > 0x7f800000u ? 0x7e00u : 0x7c00u;
    const uint32_t h = a >= 0x477ff000u ? special : a < 0x38800000u ? small : normal; /* 65520 and above round to infinity */
    return (uint16_t)(h | (u & 0x80000000u) >> 16);
}

ALWAYS_INLINE void floats(const float *i, const float *f, const float *z, const float *old, float *restrict out, size_t n, int fused) {
    for (size_t k = 0; k < n; k++) out[k] = update(i[k], f[k], z[k], old[k], fused);
}

enum { BLOCK = 256 };

ALWAYS_INLINE void widen(const uint16_t *from, float *restrict to, size_t n) {
    for (size_t k = 0; k < n; k++) to[k] = from_half(from[k]);
}

ALWAYS_INLINE void halves(const uint16_t *i, const uint16_t *f, const uint16_t *z, const uint16_t *old, uint16_t *restrict out, size_t n, int fused) {
    float wi[BLOCK], wf[BLOCK], wz[BLOCK], wold[BLOCK], wout[BLOCK];
    for (size_t at = 0; at < n; at += BLOCK) {
        const size_t m = n - at < BLOCK ? n - at : BLOCK;
        widen(i + at, wi, m);
        widen(f + at, wf, m);
        widen(z + at, wz, m);
        widen(old + at, wold, m);
        floats(wi, wf, wz, wold, wout, m, fused);
        for (size_t k = 0; k < m; k++) out[at + k] = to_half(wout[k]);
    }
}

#define FLOAT_ARGUMENTS const float *i, const float *f, const float *z, const float *old, float *restrict out, size_t n
#define HALF_ARGUMENTS const uint16_t *i, const uint16_t *f, const uint16_t *z, const uint16_t *old, uint16_t *restrict out, size_t n
#define LEVEL(NAME, ATTRIBUTE, FUSED) \
    ATTRIBUTE static void floats_##NAME(FLOAT_ARGUMENTS) { floats(i, f, z, old, out, n, FUSED); } \
    ATTRIBUTE static void halves_##NAME(HALF_ARGUMENTS) { halves(i, f, z, old, out, n, FUSED); }

LEVEL(base, , BASE_FUSED)
#if X86_LEVELS
LEVEL(avx2, __attribute__((target("avx2,fma"))), 1)
LEVEL(avx512, __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"))), 1)

static int level(void) {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
    const int wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                     __builtin_cpu_supports("avx512vl");
    return wide ? 2 : 1;
}
#endif

void lm2_gated_memory_update_f32(FLOAT_ARGUMENTS) {
#if X86_LEVELS
    const int best = level();
    if (best == 2) { floats_avx512(i, f, z, old, out, n); return; }
    if (best == 1) { floats_avx2(i, f, z, old, out, n); return; }
#endif
    floats_base(i, f, z, old, out, n);
}

void lm2_gated_memory_update_f16(HALF_ARGUMENTS) {
#if X86_LEVELS
    const int best = level();
    if (best == 2) { halves_avx512(i, f, z, old, out, n); return; }
    if (best == 1) { halves_avx2(i, f, z, old, out, n); return; }
#endif
    halves_base(i, f, z, old, out, n);
}
