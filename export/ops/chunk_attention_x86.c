/* ai.lm2::ChunkAttention's arithmetic with AVX2 and AVX-512: 32 keys, or 32 numbers of a value, at once, a lane each.

A lane does what plain C does for its key or number, so vectors of any width make the same bits. Knows arrays; no ONNX Runtime, no threads,
no state. */

#include "chunk_attention.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#include <float.h>
#include <immintrin.h>

#define AVX2 __attribute__((target("avx2,fma")))
#ifdef LM2_AVX512_STAND_IN /* for tests: these instructions written out, so that their code runs on processors that lack them */
#include LM2_AVX512_STAND_IN
#define AVX512 AVX2
#else
#define AVX512 __attribute__((target("avx2,fma,avx512f")))
#endif
#define INLINE static inline __attribute__((always_inline))

enum { LANES = 8, VECTORS = LM2_A_BLOCK / LANES, AHEAD = 10 /* keys */ };

INLINE AVX2 __m256 two(const float *low, const float *high) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low)), _mm_loadu_ps(high), 1);
}

/* 4 numbers of each of 8 keys -> 4 vectors, each with one number of every key. */
INLINE AVX2 void turn4(const float *const *key, size_t d, __m256 out[4]) {
    __m256 r[4];
    for (int j = 0; j < 4; j++) r[j] = two(key[j] + d, key[j + 4] + d);
    const __m256 l0 = _mm256_unpacklo_ps(r[0], r[1]), h0 = _mm256_unpackhi_ps(r[0], r[1]);
    const __m256 l1 = _mm256_unpacklo_ps(r[2], r[3]), h1 = _mm256_unpackhi_ps(r[2], r[3]);
    out[0] = _mm256_shuffle_ps(l0, l1, 0x44), out[1] = _mm256_shuffle_ps(l0, l1, 0xee);
    out[2] = _mm256_shuffle_ps(h0, h1, 0x44), out[3] = _mm256_shuffle_ps(h0, h1, 0xee);
}

/* Keys j .. j + 7 of `keys`; copies of the last one behind it. */
INLINE void point(const float *from, size_t stride, size_t keys, size_t j, const float **key) {
    for (size_t i = 0; i < LANES; i++) key[i] = from + (j + i < keys ? j + i : keys - 1) * stride;
}

AVX2 static void turn(const float *from, size_t stride, size_t keys, size_t width, float *to) {
    for (size_t j = 0; j < LM2_A_BLOCK; j += LANES) {
        const float *key[LANES];
        size_t d = 0;
        point(from, stride, keys, j, key);
        for (; d + 4 <= width; d += 4) {
            __m256 line[4];
            turn4(key, d, line);
            for (int i = 0; i < 4; i++) _mm256_storeu_ps(to + (d + i) * LM2_A_BLOCK + j, line[i]);
        }
        for (; d < width; d++)
            for (size_t i = 0; i < LANES; i++) to[d * LM2_A_BLOCK + j + i] = key[i][d];
    }
}

/* For bytes at `from` + `offset`, which need not be there: no access, and no pointer past an end. */
INLINE void ask(const float *from, size_t offset) { _mm_prefetch((const char *)((uintptr_t)from + offset * sizeof *from), _MM_HINT_T0); }

/* 16 keys at once; `rows` is a constant. For each line that is read, one of the next keys and one of `next` are asked for. */
INLINE AVX2 void few_rows(const float *q, size_t q_stride, const int rows, const float *from, size_t stride, size_t keys, size_t width, float *s,
                          size_t s_stride, const float *next) {
    for (size_t j = 0; j < LM2_A_BLOCK; j += 2 * LANES) {
        const float *key[2][LANES];
        __m256 sum[LM2_A_FEW][2];
        size_t d = 0;
        for (size_t h = 0; h < 2; h++) point(from, stride, keys, j + h * LANES, key[h]);
        for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = _mm256_setzero_ps();
        for (; d + 4 <= width; d += 4) {
            for (size_t i = 0; i < 4; i++) {
                ask(from, (AHEAD + j) * stride + (d + i) * 2 * LANES);
                ask(next, j * stride + (d + i) * 2 * LANES);
            }
            for (int h = 0; h < 2; h++) {
                __m256 line[4];
                turn4(key[h], d, line);
                for (int r = 0; r < rows; r++)
                    for (int i = 0; i < 4; i++) sum[r][h] = _mm256_fmadd_ps(_mm256_broadcast_ss(q + r * q_stride + d + i), line[i], sum[r][h]);
            }
        }
        for (; d < width; d++)
            for (int h = 0; h < 2; h++) {
                const float *const *k = key[h];
                const __m256 line = _mm256_setr_ps(k[0][d], k[1][d], k[2][d], k[3][d], k[4][d], k[5][d], k[6][d], k[7][d]);
                for (int r = 0; r < rows; r++) sum[r][h] = _mm256_fmadd_ps(_mm256_broadcast_ss(q + r * q_stride + d), line, sum[r][h]);
            }
        for (int r = 0; r < rows; r++)
            for (size_t h = 0; h < 2; h++) _mm256_storeu_ps(s + r * s_stride + j + h * LANES, sum[r][h]);
    }
}

AVX2 static void few(const float *q, size_t q_stride, size_t rows, const float *key, size_t stride, size_t keys, size_t width, float *s, size_t s_stride,
                     const float *next) {
    if (rows == 3) few_rows(q, q_stride, 3, key, stride, keys, width, s, s_stride, next);
    if (rows == 2) few_rows(q, q_stride, 2, key, stride, keys, width, s, s_stride, next);
    if (rows == 1) few_rows(q, q_stride, 1, key, stride, keys, width, s, s_stride, next);
}

/* Rows `first` and after; `rows` and `asks` are constants. */
INLINE AVX2 void multiply_rows(const Lm2AProduct *p, size_t first, const int rows, const int asks) {
    const float *a = p->a + first * p->a_stride, *b = p->b;
    float *c = p->c + first * p->c_stride;
    __m256 sum[3][VECTORS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECTORS; v++) sum[r][v] = _mm256_loadu_ps(c + r * p->c_stride + v * LANES);
    for (size_t x = 0; x < p->n; x++, b += p->b_stride) {
        __m256 factor[3]; /* with the sums and one line: 16 registers */
        if (asks) ask(p->next, x * LM2_A_BLOCK), ask(p->next, x * LM2_A_BLOCK + 2 * LANES);
        for (int r = 0; r < rows; r++) factor[r] = _mm256_broadcast_ss(a + r * p->a_stride + x);
        for (int v = 0; v < VECTORS; v++) {
            const __m256 line = _mm256_loadu_ps(b + v * LANES);
            for (int r = 0; r < rows; r++) sum[r][v] = _mm256_fmadd_ps(factor[r], line, sum[r][v]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECTORS; v++) _mm256_storeu_ps(c + r * p->c_stride + v * LANES, sum[r][v]);
}

AVX2 static void multiply(const Lm2AProduct *p) {
    size_t r = 0;
    if (p->next && p->rows >= 3) multiply_rows(p, 0, 3, 1), r = 3;
    for (; r + 3 <= p->rows; r += 3) multiply_rows(p, r, 3, 0);
    if (r + 2 == p->rows) multiply_rows(p, r, 2, 0);
    if (r + 1 == p->rows) multiply_rows(p, r, 1, 0);
}

INLINE AVX512 void multiply_rows_512(const Lm2AProduct *p, size_t first, const int rows, const int asks) {
    const float *a = p->a + first * p->a_stride, *b = p->b;
    float *c = p->c + first * p->c_stride;
    __m512 sum[LM2_A_ROWS][2];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < 2; v++) sum[r][v] = _mm512_loadu_ps(c + r * p->c_stride + v * 16);
    for (size_t x = 0; x < p->n; x++, b += p->b_stride) {
        const __m512 low = _mm512_loadu_ps(b), high = _mm512_loadu_ps(b + 16);
        if (asks) ask(p->next, x * LM2_A_BLOCK), ask(p->next, x * LM2_A_BLOCK + 2 * LANES);
        for (int r = 0; r < rows; r++) {
            const __m512 factor = _mm512_set1_ps(a[r * p->a_stride + x]);
            sum[r][0] = _mm512_fmadd_ps(factor, low, sum[r][0]);
            sum[r][1] = _mm512_fmadd_ps(factor, high, sum[r][1]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < 2; v++) _mm512_storeu_ps(c + r * p->c_stride + v * 16, sum[r][v]);
}

AVX512 static void multiply_512(const Lm2AProduct *p) {
    size_t r = 0;
    if (p->next && p->rows == LM2_A_ROWS) multiply_rows_512(p, 0, LM2_A_ROWS, 1), r = LM2_A_ROWS;
    for (; r + LM2_A_ROWS <= p->rows; r += LM2_A_ROWS) multiply_rows_512(p, r, LM2_A_ROWS, 0);
    for (; r + 3 <= p->rows; r += 3) multiply_rows_512(p, r, 3, 0);
    for (; r < p->rows; r++) multiply_rows_512(p, r, 1, 0);
}

/* e^x for x at most 0, as plain C has it. */
INLINE AVX2 __m256 power(__m256 x) {
    const __m256 least = _mm256_set1_ps(LM2_A_LEAST), one = _mm256_set1_ps(1.0f), rounder = _mm256_set1_ps(LM2_A_ROUNDER);
    const __m256 y = _mm256_max_ps(_mm256_set1_ps(LM2_A_LEAST - 1), x); /* of a NaN and a number, the second */
    const __m256 shifted = _mm256_fmadd_ps(y, _mm256_set1_ps(LM2_A_LOG2E), rounder), n = _mm256_sub_ps(shifted, rounder);
    const __m256 r = _mm256_fmadd_ps(n, _mm256_set1_ps(-LM2_A_LN2_REST), _mm256_fmadd_ps(n, _mm256_set1_ps(-LM2_A_LN2), y));
    __m256 p = _mm256_fmadd_ps(_mm256_set1_ps(LM2_A_C4), r, _mm256_set1_ps(LM2_A_C3));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(LM2_A_C2));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(LM2_A_C1));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(LM2_A_C0));
    p = _mm256_fmadd_ps(p, r, one);
    p = _mm256_fmadd_ps(p, r, one);
    const __m256i two = _mm256_add_epi32(_mm256_slli_epi32(_mm256_castps_si256(shifted), 23), _mm256_castps_si256(one));
    return _mm256_andnot_ps(_mm256_cmp_ps(x, least, _CMP_LT_OQ), _mm256_mul_ps(p, _mm256_castsi256_ps(two)));
}

AVX2 static void weigh(float *s, size_t count, float *largest, float *sum) {
    float lane[LANES], most = -FLT_MAX;
    __m256 top = _mm256_set1_ps(most), low = _mm256_setzero_ps(), high = low;
    while (count % LM2_A_LANES) s[count++] = -__builtin_inff(); /* weighs 0 */
    for (size_t j = 0; j < count; j += LANES) top = _mm256_max_ps(top, _mm256_loadu_ps(s + j));
    _mm256_storeu_ps(lane, top);
    for (int j = 0; j < LANES; j++) most = most > lane[j] ? most : lane[j];
    top = _mm256_set1_ps(most);
    for (size_t j = 0; j < count; j += LM2_A_LANES) {
        const __m256 a = power(_mm256_sub_ps(_mm256_loadu_ps(s + j), top)), b = power(_mm256_sub_ps(_mm256_loadu_ps(s + j + LANES), top));
        _mm256_storeu_ps(s + j, a);
        _mm256_storeu_ps(s + j + LANES, b);
        low = _mm256_add_ps(low, a);
        high = _mm256_add_ps(high, b);
    }
    low = _mm256_add_ps(low, high);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(low), _mm256_extractf128_ps(low, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    *largest = most;
    *sum = _mm_cvtss_f32(_mm_add_ss(four, _mm_shuffle_ps(four, four, 1)));
}

AVX2 static void powers(float x[2]) {
    const __m256 both = _mm256_castps128_ps256(_mm_unpacklo_ps(_mm_load_ss(x), _mm_load_ss(x + 1)));
    _mm_storel_pi((__m64 *)(void *)x, _mm256_castps256_ps128(power(both)));
}

AVX2 static void join(float *to, const float *from, size_t n, float old, float fresh) {
    const __m256 o = _mm256_set1_ps(old), f = _mm256_set1_ps(fresh);
    size_t d = 0;
    for (; d + LANES <= n; d += LANES)
        _mm256_storeu_ps(to + d, _mm256_fmadd_ps(_mm256_loadu_ps(from + d), f, _mm256_mul_ps(_mm256_loadu_ps(to + d), o)));
    for (; d < n; d++) to[d] = __builtin_fmaf(from[d], fresh, to[d] * old);
}

static int has_avx2(void) { return __builtin_cpu_init(), __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#ifdef LM2_AVX512_STAND_IN
static int has_avx512(void) { return has_avx2(); }
#else
static int has_avx512(void) { return has_avx2() && __builtin_cpu_supports("avx512f"); }
#endif

static const Lm2ALevel LEVELS[] = {
    {"avx512", has_avx512, turn, few, multiply_512, weigh, powers, join},
    {"avx2", has_avx2, turn, few, multiply, weigh, powers, join},
};

const Lm2ALevel *lm2_attention_x86(size_t *count) { return *count = sizeof LEVELS / sizeof *LEVELS, LEVELS; }

#else
const Lm2ALevel *lm2_attention_x86(size_t *count) { return *count = 0, (const Lm2ALevel *)0; }
#endif
