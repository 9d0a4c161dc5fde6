/* ai.lm2::QLinear with AVX2, any number of rows: products of int16, two of which a processor adds into an int32, so that sums need no other care.

A panel of a tile (16 outputs, up to 18 blocks) is widened to int16, and then multiplied by all rows of x, four at a time. One vector holds two
numbers of 8 outputs. Between panels y holds the sums. Knows arrays; no ONNX Runtime, no threads, no state. */

#include "qlinear_x86.h"

#ifdef LM2_QLINEAR_X86

enum { PANEL = 18, PAIRS = LM2_QBLOCK / 2, HALF_TILE = LM2_QTILE / 2, AT_ONCE = 4 };

typedef struct {
    _Alignas(64) int16_t q[PANEL][PAIRS][LM2_QTILE][2];
    _Alignas(64) float d[PANEL][LM2_QTILE];
    _Alignas(64) float m[PANEL][LM2_QTILE];
    size_t first, blocks; /* of W's blocks */
} Panel;

/* 4 bytes of each of 8 outputs -> two vectors with 2 numbers each. With `sign` the bytes are signed. */
INLINE AVX2 void widen(__m256i bytes, int sign, int16_t (*to)[LM2_QTILE][2]) {
    const __m256i low = sign ? _mm256_set_epi8(13, -1, 12, -1, 9, -1, 8, -1, 5, -1, 4, -1, 1, -1, 0, -1, 13, -1, 12, -1, 9, -1, 8, -1, 5, -1, 4, -1, 1, -1, 0, -1)
                             : _mm256_set_epi8(-1, 13, -1, 12, -1, 9, -1, 8, -1, 5, -1, 4, -1, 1, -1, 0, -1, 13, -1, 12, -1, 9, -1, 8, -1, 5, -1, 4, -1, 1, -1, 0);
    const __m256i high = sign ? _mm256_set_epi8(15, -1, 14, -1, 11, -1, 10, -1, 7, -1, 6, -1, 3, -1, 2, -1, 15, -1, 14, -1, 11, -1, 10, -1, 7, -1, 6, -1, 3, -1, 2, -1)
                              : _mm256_set_epi8(-1, 15, -1, 14, -1, 11, -1, 10, -1, 7, -1, 6, -1, 3, -1, 2, -1, 15, -1, 14, -1, 11, -1, 10, -1, 7, -1, 6, -1, 3, -1, 2);
    __m256i a = _mm256_shuffle_epi8(bytes, low), b = _mm256_shuffle_epi8(bytes, high);
    if (sign) a = _mm256_srai_epi16(a, 8), b = _mm256_srai_epi16(b, 8);
    _mm256_store_si256((__m256i *)(void *)to[0], a);
    _mm256_store_si256((__m256i *)(void *)to[1], b);
}

INLINE AVX2 void read_block(const uint8_t *q, int bits, int16_t (*to)[LM2_QTILE][2]) {
    const __m256i low = _mm256_set1_epi8(15);
    for (int half = 0; half < 2; half++) {
        int16_t(*here)[LM2_QTILE][2] = (int16_t(*)[LM2_QTILE][2])(void *)to[0][half * HALF_TILE];
        for (int v = 0; v < bits; v++) {
            const __m256i bytes = _mm256_loadu_si256((const __m256i *)(const void *)(q + 64 * v + 32 * half));
            if (bits == 4) {
                widen(_mm256_and_si256(bytes, low), 0, here + 2 * v);
                widen(_mm256_and_si256(_mm256_srli_epi16(bytes, 4), low), 0, here + PAIRS / 2 + 2 * v);
            } else {
                widen(bytes, 1, here + 2 * v);
            }
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

/* Adds in the order written: taken apart, the compiler would make a tree of the sums, for which there are not enough registers. */
#define ADD(SUM, VALUE) \
    do { \
        SUM = _mm256_add_epi32(SUM, VALUE); \
        __asm__("" : "+x"(SUM)); \
    } while (0)

/* y (rows, 16) at `stride`: the panel's part added, for `rows` rows of x (a constant, AT_ONCE at most) from row `first`. */
INLINE AVX2 void multiply(const Panel *p, const Lm2QRows *x, size_t first, int rows, float *y, size_t stride) {
    float sums[AT_ONCE][LM2_QTILE];
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < 2; h++) _mm256_storeu_ps(sums[r] + 8 * h, p->first ? _mm256_loadu_ps(y + r * stride + 8 * h) : _mm256_setzero_ps());
    for (size_t k = 0; k < p->blocks; k++) {
        const size_t at = first * x->blocks + p->first + k;
        __m256i dot[AT_ONCE][2];
        for (int r = 0; r < rows; r++) dot[r][0] = dot[r][1] = _mm256_setzero_si256();
        for (int pair = 0; pair < PAIRS; pair++) {
            const __m256i w0 = _mm256_load_si256((const __m256i *)(const void *)p->q[k][pair][0]);
            const __m256i w1 = _mm256_load_si256((const __m256i *)(const void *)p->q[k][pair][HALF_TILE]);
            for (int r = 0; r < rows; r++) {
                int32_t two;
                memcpy(&two, x->number + (at + r * x->blocks) * LM2_QBLOCK + 2 * pair, sizeof two);
                const __m256i n = _mm256_set1_epi32(two);
                ADD(dot[r][0], _mm256_madd_epi16(w0, n));
                ADD(dot[r][1], _mm256_madd_epi16(w1, n));
            }
        }
        for (int r = 0; r < rows; r++) {
            const __m256 sum = _mm256_cvtepi32_ps(_mm256_set1_epi32(x->sum[at + r * x->blocks])), step = _mm256_set1_ps(x->step[at + r * x->blocks]);
            for (int h = 0; h < 2; h++) {
                const __m256 own = _mm256_mul_ps(_mm256_cvtepi32_ps(dot[r][h]), _mm256_load_ps(p->d[k] + 8 * h));
                const __m256 part = _mm256_add_ps(own, _mm256_mul_ps(sum, _mm256_load_ps(p->m[k] + 8 * h)));
                float *to = sums[r] + 8 * h;
                _mm256_storeu_ps(to, _mm256_add_ps(_mm256_loadu_ps(to), _mm256_mul_ps(part, step)));
            }
        }
    }
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < 2; h++) _mm256_storeu_ps(y + r * stride + 8 * h, _mm256_loadu_ps(sums[r] + 8 * h));
}

AVX2 static void four_rows(const Panel *p, const Lm2QRows *x, size_t first, float *y, size_t stride) { multiply(p, x, first, 4, y, stride); }
AVX2 static void two_rows(const Panel *p, const Lm2QRows *x, size_t first, float *y, size_t stride) { multiply(p, x, first, 2, y, stride); }
AVX2 static void one_row(const Panel *p, const Lm2QRows *x, size_t first, float *y, size_t stride) { multiply(p, x, first, 1, y, stride); }

/* A tile of which W has `here` outputs: its last one, where that is not whole. */
AVX2 static void part_of_tile(const Panel *p, const Lm2QRows *x, size_t rows, size_t here, float *y, size_t stride) {
    for (size_t r = 0; r < rows; r++) {
        float room[LM2_QTILE] = {0}, *to = y + r * stride;
        if (p->first) memcpy(room, to, here * sizeof *to);
        one_row(p, x, r, room, 0);
        memcpy(to, room, here * sizeof *to);
    }
}

AVX2 void lm2_q_rows_avx2(const Lm2QMatrix *w, const Lm2QRows *x, size_t rows, size_t first, size_t last, float *y) {
    Panel p;
    const size_t panels = (w->blocks - 1) / PANEL + 1;
    if (w->one_minimum)
        for (size_t k = 0; k < PANEL * LM2_QTILE; k++) p.m[k / LM2_QTILE][k % LM2_QTILE] = lm2_q_half(*w->m);
    for (size_t tile = first; tile < last; tile++) {
        const size_t o = tile * LM2_QTILE, here = w->outputs - o < LM2_QTILE ? w->outputs - o : LM2_QTILE;
        for (size_t n = 0; n < panels; n++) { /* of one size, so that no last one is small */
            p.first = w->blocks * n / panels;
            p.blocks = w->blocks * (n + 1) / panels - p.first;
            if (w->bits == 4) read_panel(w, tile, 4, &p);
            else read_panel(w, tile, 8, &p);
            if (here < LM2_QTILE) {
                part_of_tile(&p, x, rows, here, y + o, w->outputs);
                continue;
            }
            size_t r = 0;
            for (; r + 4 <= rows; r += 4) four_rows(&p, x, r, y + r * w->outputs + o, w->outputs);
            for (; r + 2 <= rows; r += 2) two_rows(&p, x, r, y + r * w->outputs + o, w->outputs);
            if (r < rows) one_row(&p, x, r, y + r * w->outputs + o, w->outputs);
        }
    }
}

#endif
