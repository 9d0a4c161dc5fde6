/* ai.lm2::GatedMemoryUpdate on a CPU: new = sigmoid(i) * tanh(z) + sigmoid(f) * old, elementwise, float32 and float16.

Knows arrays of n elements; no ONNX Runtime, no shapes, no threads. Plain C11 that gcc and clang vectorise at -O3. No state: every
function may run on any number of threads at once. Inputs may overlap each other; the output overlaps none of them. Every element is
computed by the same operations wherever it stands (fused multiply-adds are written out and contraction is off), so on one machine the
result does not depend on n, on the alignment or on how rows are split over calls and threads.

In float32 the error is at most 5 ulp (6e-7) of |sigmoid(i) tanh(z)| + |sigmoid(f) old|; small z keep their digits. A gate below 2^-126
may count as 0 and does below -88.38. NaN in gives NaN out. Infinities follow from the equation: sigmoid(-inf) * inf is 0 * inf, a NaN.
float16 is widened, computed in float32 and rounded once, to nearest even. */

#include "gated_memory_update.h"

#include <string.h>

#if defined(__clang__)
#define VECTOR_LOOP _Pragma("clang loop vectorize(enable)") /* its cost model declines where there is no AVX2, and is wrong */
#else
#define VECTOR_LOOP
#endif

#if defined(__GNUC__) || defined(__clang__)
#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define PREFETCH(address, write) __builtin_prefetch((address), (write))
#define FMAF __builtin_fmaf
#else
#define ALWAYS_INLINE static inline
#define PREFETCH(address, write) ((void)0)
#define FMAF(a, b, c) ((a) * (b) + (c))
#endif

#if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
#include <immintrin.h>
#define X86_LEVELS 1
#else
#define X86_LEVELS 0
#endif

#if defined(__aarch64__) || defined(__ARM_FEATURE_FMA)
#define BASE_FUSED 1 /* every such processor has the instruction */
#else
#define BASE_FUSED 0
#endif

enum { LINE = 16, LINES = 4 * LINE, AHEAD = 512 }; /* floats of a cache line, of a round, and how far ahead memory is asked for */

#define ROUNDER 12583039.0f /* 1.5 * 2^23 + 127: added to a small float it leaves the nearest integer, plus 127, in the low bits */

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

/* x between low (negative) and high; a NaN becomes one of the two. On the bits, where each bound is one integer minimum. */
ALWAYS_INLINE float clamped(float x, float low, float high) {
    const int32_t u = (int32_t)bits_of(x), most = (int32_t)bits_of(high);
    const uint32_t v = (uint32_t)(u < most ? u : most);
    return float_of(v < bits_of(low) ? v : bits_of(low));
}

/* factor * x = n ln 2 + r with |r| <= ln 2 / 2. Returns r / factor; *power is 2^n for n from -126 to 127, 0 below and infinity above. One
exact step of fused multiply-add is enough (n times the error of the float nearest to ln 2 is below 2e-7 of a gate that is below 1e-37);
without it ln 2 comes in two parts, the first exact times any n here. */
ALWAYS_INLINE float reduced(float x, float factor, float *power, int fused) {
    const float k = multiply_add(x, factor * 1.44269504f, ROUNDER, fused);
    const float n = k - ROUNDER;
    *power = float_of(bits_of(k) << 23);
    if (fused) return FMAF(n, -0.693147181f / factor, x);
    return (x - n * (0.693145752f / factor)) - n * (1.42860677e-6f / factor);
}

/* 1 / sigmoid(x) = 1 + e^-x, for x in [-89, 88]; infinity below -88.37. The polynomial is the minimax fit of (e^r - 1) / r with relative
error 9e-8; one degree more would cost 6% of the time and gain half an ulp. */
ALWAYS_INLINE float inverse_sigmoid(float x, int fused) {
    float power;
    const float r = reduced(x, -1.0f, &power, fused); /* -x = n ln 2 - r */
    float e = multiply_add(r, -0x1.0fa77cp-7f, 0x1.573b4ap-5f, fused);
    e = multiply_add(e, r, -0x1.555a70p-3f, fused);
    e = multiply_add(e, r, 0x1.fffdc2p-2f, fused);
    e = multiply_add(e, r, -0x1.fffff6p-1f, fused);
    e = multiply_add(e, r, 1.0f, fused);
    return multiply_add(e, power, 1.0f, fused);
}

/* e^2z - 1 for z in [-10, 0], exact to a few ulp near 0 as well: tanh(z) is this over itself plus 2. With z = n ln 2 / 2 + r, the
polynomial is the minimax fit of (e^2r - 1 - 2r) / r^2. */
ALWAYS_INLINE float double_expm1(float z, int fused) {
    float power;
    const float r = reduced(z, 2.0f, &power, fused);
    float p = multiply_add(r, 0x1.6bebf2p-4f, 0x1.1227f6p-2f, fused);
    p = multiply_add(p, r, 0x1.555674p-1f, fused);
    p = multiply_add(p, r, 0x1.5554b0p+0f, fused);
    p = multiply_add(p, r, 0x1.fffffep+0f, fused);
    p = multiply_add(r * r, p, r + r, fused);
    return multiply_add(power, p, power - 1.0f, fused);
}

ALWAYS_INLINE float update(float i, float f, float z, float old, int fused) {
    const int no_number = (i != i) | (f != f) | (z != z);
    const float di = inverse_sigmoid(clamped(i, -89.0f, 88.0f), fused);
    const float df = inverse_sigmoid(clamped(f, -89.0f, 88.0f), fused);
    const uint32_t away = bits_of(z) & 0x7fffffffu, most = bits_of(10.0f), sign = bits_of(z) & 0x80000000u;
    const float e = double_expm1(float_of((away < most ? away : most) | 0x80000000u), fused);
    const float tanh_up = float_of((bits_of(e) & 0x7fffffffu) | sign); /* tanh(z) * (e + 2) */
    const float result = tanh_up / (di * (e + 2.0f)) + old / df;       /* one division for sigmoid(i) * tanh(z) */
    return no_number ? float_of(0x7fc00000u) : result;
}

ALWAYS_INLINE float from_half(uint16_t half) {
    const uint32_t h = half, magnitude_bits = h & 0x7fffu;
    const uint32_t normal = (magnitude_bits << 13) + ((magnitude_bits >= 0x7c00u ? 224u : 112u) << 23);
    const uint32_t small =
        bits_of((float)(int32_t)magnitude_bits * 0x1p-24f); /* no subnormal float on the way: flushing modes change nothing */
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
    size_t k = 0;
    for (; k + LINES + AHEAD <= n; k += LINES) {
        for (size_t line = k + AHEAD; line < k + AHEAD + LINES; line += LINE) {
            PREFETCH(i + line, 0);
            PREFETCH(f + line, 0);
            PREFETCH(z + line, 0);
            PREFETCH(old + line, 0);
            PREFETCH(out + line, 1);
        }
        VECTOR_LOOP
        for (size_t j = k; j < k + LINES; j++) out[j] = update(i[j], f[j], z[j], old[j], fused);
    }
    VECTOR_LOOP
    for (; k < n; k++) out[k] = update(i[k], f[k], z[k], old[k], fused);
}

enum { BLOCK = 256 };

ALWAYS_INLINE void widen(const uint16_t *from, float *restrict to, size_t n) {
    for (size_t k = 0; k < n; k++) to[k] = from_half(from[k]);
}

ALWAYS_INLINE void narrow(const float *from, uint16_t *restrict to, size_t n) {
    for (size_t k = 0; k < n; k++) to[k] = to_half(from[k]);
}

#if X86_LEVELS
/* The same with the processor's own conversion: no compiler makes it of a loop. */
__attribute__((target("avx2,fma,f16c"))) static void widen_f16c(const uint16_t *from, float *restrict to, size_t n) {
    size_t k = 0;
    for (; k + 8 <= n; k += 8) _mm256_storeu_ps(to + k, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(from + k))));
    for (; k < n; k++) to[k] = from_half(from[k]);
}

__attribute__((target("avx2,fma,f16c"))) static void narrow_f16c(const float *from, uint16_t *restrict to, size_t n) {
    size_t k = 0;
    for (; k + 8 <= n; k += 8)
        _mm_storeu_si128((__m128i *)(void *)(to + k), _mm256_cvtps_ph(_mm256_loadu_ps(from + k), _MM_FROUND_TO_NEAREST_INT));
    for (; k < n; k++) to[k] = to_half(from[k]);
}
#define WIDEN(from, to, n) (f16c ? widen_f16c(from, to, n) : widen(from, to, n))
#define NARROW(from, to, n) (f16c ? narrow_f16c(from, to, n) : narrow(from, to, n))
#else
#define WIDEN(from, to, n) widen(from, to, n)
#define NARROW(from, to, n) narrow(from, to, n)
#endif

ALWAYS_INLINE void halves(const uint16_t *i, const uint16_t *f, const uint16_t *z, const uint16_t *old, uint16_t *restrict out, size_t n,
                          int fused, int f16c) {
    float wi[BLOCK], wf[BLOCK], wz[BLOCK], wold[BLOCK], wout[BLOCK];
    (void)f16c;
    for (size_t at = 0; at < n; at += BLOCK) {
        const size_t m = n - at < BLOCK ? n - at : BLOCK;
        WIDEN(i + at, wi, m);
        WIDEN(f + at, wf, m);
        WIDEN(z + at, wz, m);
        WIDEN(old + at, wold, m);
        floats(wi, wf, wz, wold, wout, m, fused);
        NARROW(wout, out + at, m);
    }
}

#define FLOAT_ARGUMENTS const float *i, const float *f, const float *z, const float *old, float *restrict out, size_t n
#define HALF_ARGUMENTS const uint16_t *i, const uint16_t *f, const uint16_t *z, const uint16_t *old, uint16_t *restrict out, size_t n
#define LEVEL(NAME, ATTRIBUTE, FUSED, F16C) \
    ATTRIBUTE static void floats_##NAME(FLOAT_ARGUMENTS) { floats(i, f, z, old, out, n, FUSED); } \
    ATTRIBUTE static void halves_##NAME(HALF_ARGUMENTS) { halves(i, f, z, old, out, n, FUSED, F16C); }

LEVEL(base, , BASE_FUSED, 0)
#if X86_LEVELS
LEVEL(avx2, __attribute__((target("avx2,fma,f16c"))), 1, 1)
LEVEL(avx512, __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"))), 1, 1)

/* 0, 1 or 2. Every processor with AVX2 has F16C, which not all compilers can ask for. */
static int level(void) {
    __builtin_cpu_init(); /* what the C runtime found out once; asking the processor here traps in a virtual machine, 20 us a time */
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
    const int wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                     __builtin_cpu_supports("avx512vl");
    return wide ? 2 : 1;
}
#endif

void lm2_gated_memory_update_f32(FLOAT_ARGUMENTS) {
#if X86_LEVELS
    const int best = level();
    if (best == 2) {
        floats_avx512(i, f, z, old, out, n);
        return;
    }
    if (best == 1) {
        floats_avx2(i, f, z, old, out, n);
        return;
    }
#endif
    floats_base(i, f, z, old, out, n);
}

void lm2_gated_memory_update_f16(HALF_ARGUMENTS) {
#if X86_LEVELS
    const int best = level();
    if (best == 2) {
        halves_avx512(i, f, z, old, out, n);
        return;
    }
    if (best == 1) {
        halves_avx2(i, f, z, old, out, n);
        return;
    }
#endif
    halves_base(i, f, z, old, out, n);
}
