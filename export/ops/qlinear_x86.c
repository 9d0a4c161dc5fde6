/* ai.lm2::QLinear's levels, and many rows with AVX-VNNI and AVX-512 VNNI: 16 outputs at once, a lane each.

A panel of a tile (16 outputs, up to 24 blocks) is taken apart into unsigned bytes, 8-bit numbers with 128 added, and then multiplied by all rows of x. Between
panels y holds the sums. Weights are read once, in three streams that are asked for ahead. A few rows go without a panel
(qlinear_x86_row.c). Knows arrays; no ONNX Runtime, no threads, no state. */

#include "qlinear_x86.h"

#ifdef LM2_QLINEAR_X86

#include <cpuid.h>

enum { PANEL = 24, VECTORS = 8, HALF_TILE = LM2_QTILE / 2, ROWS_512 = 4, FEW = 3 };

/* Some blocks of a tile: one vector holds 4 numbers of every output, in unsigned bytes. */
typedef struct {
    _Alignas(64) uint8_t q[PANEL][VECTORS][LM2_QTILE][4];
    _Alignas(64) float d[PANEL][LM2_QTILE];
    _Alignas(64) float m[PANEL][LM2_QTILE];
    size_t first, blocks; /* of W's blocks */
    int32_t added;        /* to every number: 0, or with 8 bits 1 << ADDED_SHIFT */
} Panel;

INLINE AVX2 void read_block(const uint8_t *q, int bits, uint8_t (*to)[LM2_QTILE][4]) {
    const __m256i low = _mm256_set1_epi8(15), top = _mm256_set1_epi8((char)0x80);
    uint8_t *out = &to[0][0][0];
    for (size_t n = 0; n < lm2_q_block_bytes(bits); n += sizeof low) {
        const __m256i bytes = _mm256_loadu_si256((const __m256i *)(const void *)(q + n));
        if (bits == 4) {
            _mm256_store_si256((__m256i *)(void *)(out + n), _mm256_and_si256(bytes, low));
            _mm256_store_si256((__m256i *)(void *)(out + sizeof *to * 4 + n), _mm256_and_si256(_mm256_srli_epi16(bytes, 4), low));
        } else {
            _mm256_store_si256((__m256i *)(void *)(out + n), _mm256_xor_si256(bytes, top));
        }
    }
}

INLINE AVX2 void read_panel(const Lm2QMatrix *w, size_t tile, int bits, Panel *p) {
    for (size_t k = 0; k < p->blocks; k++) {
        const size_t at = tile * w->blocks + p->first + k;
        ask_block(w, at, bits, w->one_minimum);
        read_block(w->q + at * lm2_q_block_bytes(bits), bits, p->q[k]);
        wide_tile(w->d + at * LM2_QTILE, p->d[k]);
        if (!w->one_minimum) wide_tile(w->m + at * LM2_QTILE, p->m[k]);
    }
}

/* sums + (dot d + sum m) step, for 8 outputs of one block. */
INLINE AVX2 __m256 add_block(__m256 sums, __m256i dot, const float *d, const float *m, int32_t sum, float step) {
    const __m256 own = _mm256_mul_ps(_mm256_cvtepi32_ps(dot), _mm256_load_ps(d));
    const __m256 least = _mm256_mul_ps(_mm256_set1_ps((float)sum), _mm256_load_ps(m));
    return _mm256_add_ps(sums, _mm256_mul_ps(_mm256_add_ps(own, least), _mm256_set1_ps(step)));
}

/* Below: dot (rows, 2 halves), of block k of the panel with `rows` rows of x (a constant); `at` is that block in the first of them.

Any bits: the processor adds 4 products of bytes into an int32. */
INLINE AVXVNNI void dot_vnni(const Panel *p, size_t k, const Lm2QRows *x, size_t at, int rows, __m256i (*dot)[2]) {
    __m256i high[2][2], low[2][2];
    for (int r = 0; r < rows; r++) high[r][0] = high[r][1] = low[r][0] = low[r][1] = _mm256_setzero_si256();
    for (int v = 0; v < VECTORS; v++) {
        for (int h = 0; h < 2; h++) {
            const __m256i w = _mm256_load_si256((const __m256i *)(const void *)p->q[k][v][h * HALF_TILE]);
            for (int r = 0; r < rows; r++) {
                const size_t n = (at + r * x->blocks) * LM2_QBLOCK + 4 * v;
                high[r][h] = _mm256_dpbusd_avx_epi32(high[r][h], w, _mm256_set1_epi32(four(x->high + n)));
                low[r][h] = _mm256_dpbusd_avx_epi32(low[r][h], w, _mm256_set1_epi32(four(x->low + n)));
            }
        }
    }
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < 2; h++) {
            const __m256i all = _mm256_add_epi32(_mm256_slli_epi32(high[r][h], 8), low[r][h]);
            dot[r][h] = _mm256_sub_epi32(all, _mm256_set1_epi32(p->added * x->sum[at + r * x->blocks]));
        }
}

/* y (rows, 16) at `stride`: the panel's part added, for `rows` rows of x (a constant) from row `first`. */
#define MULTIPLY(NAME, TARGET, DOT) \
    INLINE TARGET void NAME(const Panel *p, const Lm2QRows *x, size_t first, int rows, float *y, size_t stride) { \
        __m256 sums[2][2]; \
        for (int r = 0; r < rows; r++) \
            for (int h = 0; h < 2; h++) sums[r][h] = p->first ? _mm256_loadu_ps(y + r * stride + 8 * h) : _mm256_setzero_ps(); \
        for (size_t k = 0; k < p->blocks; k++) { \
            const size_t at = first * x->blocks + p->first + k; \
            __m256i dot[2][2]; \
            DOT(p, k, x, at, rows, dot); \
            for (int r = 0; r < rows; r++) \
                for (int h = 0; h < 2; h++) \
                    sums[r][h] = add_block(sums[r][h], dot[r][h], p->d[k] + 8 * h, p->m[k] + 8 * h, x->sum[at + r * x->blocks], \
                                           x->step[at + r * x->blocks]); \
        } \
        for (int r = 0; r < rows; r++) \
            for (int h = 0; h < 2; h++) _mm256_storeu_ps(y + r * stride + 8 * h, sums[r][h]); \
    }
MULTIPLY(multiply_vnni, AVXVNNI, dot_vnni)

/* The same with 16 lanes. `bits` is a constant too. */
INLINE AVX512 void multiply_512(const Panel *p, const Lm2QRows *x, size_t first, int rows, int bits, float *y, size_t stride) {
    __m512 sums[ROWS_512];
    for (int r = 0; r < rows; r++) sums[r] = p->first ? _mm512_loadu_ps(y + r * stride) : _mm512_setzero_ps();
    for (size_t k = 0; k < p->blocks; k++) {
        const size_t at = first * x->blocks + p->first + k;
        __m512i high[ROWS_512], low[ROWS_512];
        for (int r = 0; r < rows; r++) high[r] = low[r] = _mm512_setzero_si512();
        for (int v = 0; v < VECTORS; v++) {
            const __m512i w = _mm512_loadu_si512((const void *)p->q[k][v]);
            for (int r = 0; r < rows; r++) {
                const size_t n = (at + r * x->blocks) * LM2_QBLOCK + 4 * v;
                high[r] = _mm512_dpbusd_epi32(high[r], w, _mm512_set1_epi32(four(x->high + n)));
                low[r] = _mm512_dpbusd_epi32(low[r], w, _mm512_set1_epi32(four(x->low + n)));
            }
        }
        const __m512 d = _mm512_loadu_ps(p->d[k]), m = _mm512_loadu_ps(p->m[k]);
        for (int r = 0; r < rows; r++) {
            const __m512i sum = _mm512_set1_epi32(x->sum[at + r * x->blocks]);
            __m512i all = _mm512_add_epi32(_mm512_slli_epi32(high[r], 8), low[r]);
            if (bits == 8) all = _mm512_sub_epi32(all, _mm512_slli_epi32(sum, ADDED_SHIFT));
            const __m512 own = _mm512_mul_ps(_mm512_cvtepi32_ps(all), d);
            const __m512 part = _mm512_add_ps(own, _mm512_mul_ps(_mm512_cvtepi32_ps(sum), m));
            sums[r] = _mm512_add_ps(sums[r], _mm512_mul_ps(part, _mm512_set1_ps(x->step[at + r * x->blocks])));
        }
    }
    for (int r = 0; r < rows; r++) _mm512_storeu_ps(y + r * stride, sums[r]);
}

#define MULTIPLY_512(BITS) \
    INLINE AVX512 void multiply##BITS##_512(const Panel *p, const Lm2QRows *x, size_t first, int rows, float *y, size_t stride) { \
        multiply_512(p, x, first, rows, BITS, y, stride); \
    }
MULTIPLY_512(4)
MULTIPLY_512(8)

/* Tiles first .. last - 1 of y (rows, o), AT_ONCE rows together and the rest one by one: a row's sums are the same either way. */
#define TILES(NAME, TARGET, MULTIPLIER, AT_ONCE) \
    TARGET static void NAME(const Lm2QMatrix *w, const Lm2QRows *x, size_t rows, size_t first, size_t last, float *y) { \
        Panel p; \
        const size_t panels = (w->blocks - 1) / PANEL + 1; \
        p.added = w->bits == 8 ? 128 : 0; \
        if (w->one_minimum) \
            for (size_t k = 0; k < PANEL * LM2_QTILE; k++) p.m[k / LM2_QTILE][k % LM2_QTILE] = lm2_q_half(*w->m); \
        for (size_t tile = first; tile < last; tile++) { \
            const size_t o = tile * LM2_QTILE, here = w->outputs - o < LM2_QTILE ? w->outputs - o : LM2_QTILE; \
            for (size_t n = 0; n < panels; n++) { /* of one size, so that no last one is small */ \
                p.first = w->blocks * n / panels; \
                p.blocks = w->blocks * (n + 1) / panels - p.first; \
                if (w->bits == 4) read_panel(w, tile, 4, &p); \
                else read_panel(w, tile, 8, &p); \
                size_t r = 0; \
                if (here == LM2_QTILE) { \
                    for (; r + AT_ONCE <= rows; r += AT_ONCE) MULTIPLIER(&p, x, r, AT_ONCE, y + r * w->outputs + o, w->outputs); \
                } \
                for (; r < rows; r++) { \
                    float *to = y + r * w->outputs + o, room[LM2_QTILE] = {0}; \
                    if (here < LM2_QTILE && p.first) memcpy(room, to, here * sizeof *to); \
                    MULTIPLIER(&p, x, r, 1, here < LM2_QTILE ? room : to, w->outputs); \
                    if (here < LM2_QTILE) memcpy(to, room, here * sizeof *to); \
                } \
            } \
        } \
    }
TILES(panels_avxvnni, AVXVNNI, multiply_vnni, 2)
TILES(panels4_avx512, AVX512, multiply4_512, ROWS_512)
TILES(panels8_avx512, AVX512, multiply8_512, ROWS_512)

static void panels_avx512(const Lm2QMatrix *w, const Lm2QRows *x, size_t rows, size_t first, size_t last, float *y) {
    (w->bits == 4 ? panels4_avx512 : panels8_avx512)(w, x, rows, first, last, y);
}

/* A few rows are not worth a panel. */
#define ROW_OR_PANELS(LEVEL) \
    static void tiles_##LEVEL(const Lm2QMatrix *w, const Lm2QRows *x, size_t rows, size_t first, size_t last, float *y) { \
        if (rows <= FEW) lm2_q_row_##LEVEL(w, x, rows, first, last, y); \
        else panels_##LEVEL(w, x, rows, first, last, y); \
    }
#define panels_avx2 lm2_q_rows_avx2
ROW_OR_PANELS(avx2)
ROW_OR_PANELS(avxvnni)
ROW_OR_PANELS(avx512)

static void tiles_amx(const Lm2QMatrix *w, const Lm2QRows *x, size_t rows, size_t first, size_t last, float *y) {
    (rows < LM2_Q_AMX_ROWS ? tiles_avx512 : lm2_q_rows_amx)(w, x, rows, first, last, y);
}

AVX2 static void round_rows(const float *x, size_t first, size_t last, const Lm2QRows *rows) { lm2_q_round(x, first, last, rows); }

static int has_avx2(void) {
    __builtin_cpu_init();
    unsigned a, b, c, d;
    return __builtin_cpu_supports("avx2") && __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

#ifdef LM2_VNNI_STAND_IN
static int has_avxvnni(void) { return has_avx2(); }
static int has_avx512(void) { return has_avx2(); }
static int has_amx(void) { return has_avx2(); }
#else
/* Not all compilers have names for these. That the system keeps the registers follows from the levels below. */
static int has_avxvnni(void) {
    unsigned a, b, c, d;
    return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4);
}
static int has_avx512(void) {
    unsigned a, b, c, d;
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __get_cpuid_count(7, 0, &a, &b, &c, &d) && (c & 1u << 11);
}
static int has_amx(void) {
    unsigned a, b, c, d;
    return has_avx512() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & 1u << 24) && (d & 1u << 25) && lm2_q_may_use_amx();
}
#endif

static const Lm2QLevel LEVELS[] = {
    {"amx", has_amx, round_rows, tiles_amx},
    {"avx512vnni", has_avx512, round_rows, tiles_avx512},
    {"avxvnni", has_avxvnni, round_rows, tiles_avxvnni},
    {"avx2", has_avx2, round_rows, tiles_avx2},
};

const Lm2QLevel *lm2_qlinear_levels(size_t *count) { return *count = sizeof LEVELS / sizeof *LEVELS, LEVELS; }

#endif
