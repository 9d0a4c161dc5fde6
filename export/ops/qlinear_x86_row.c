/* One row of x times W with AVX2, AVX-VNNI and AVX-512 VNNI, straight from the file's layout: what a decoding step is made of.

Four outputs by four blocks (two, in vectors of 256 bits) are turned in registers, so that a lane of 128 bits is a block and each of its four
numbers an output; x is spread to match once for all outputs. Weights are read once, in one stream whose next tile is asked for ahead. The last
blocks of a row are read together with those before them, which are not added again. Knows arrays; no ONNX Runtime, no threads, no state. */

#include "qlinear_x86.h"

#ifdef LM2_QLINEAR_X86

enum { GROUP = LM2_QGROUP, OUTPUTS = 4, SPREAD = 64, EIGHT_BITS = 128 };

/* Four blocks of x. `high` and `low`: 4 numbers of each block, four times. 4 bits: of vector v the lane b is numbers 4 v .. of block b. 8 bits: of
vector 4 h + c the lane 2 b + a is numbers 16 a + 4 c .. of block 2 h + b. The others: a number of each block, four times. */
typedef struct {
    int8_t high[8][SPREAD], low[8][SPREAD];
    float sum[16], step[16];
    int32_t added[16]; /* 128 times the sum: what 8-bit numbers, which are made unsigned, have too much */
} Group;

_Static_assert(sizeof(Group) == LM2_QGROUP_BYTES, "lm2_q_spread_bytes counts in these");

/* Where the group of blocks from k on begins: the last one ends with the row. */
INLINE size_t start_of(size_t k, size_t blocks) { return k + GROUP <= blocks ? k : blocks - GROUP; }

AVX2 void lm2_q_spread(const Lm2QRows *row, int bits) {
    if (row->blocks < GROUP) return;
    Group *g = row->spread;
    for (size_t k = 0; k < row->blocks; k += GROUP, g++) {
        for (size_t b = 0; b < GROUP; b++) {
            const size_t at = start_of(k, row->blocks) + b;
            for (size_t v = 0; v < 8; v++) {
                const size_t vector = bits == 4 ? v : b / 2 * 4 + v % 4, lane = 16 * (bits == 4 ? b : b % 2 * 2 + v / 4);
                const size_t n = at * LM2_QBLOCK + 4 * v;
                _mm_store_si128((__m128i *)(void *)(g->high[vector] + lane), _mm_set1_epi32(four(row->high + n)));
                _mm_store_si128((__m128i *)(void *)(g->low[vector] + lane), _mm_set1_epi32(four(row->low + n)));
            }
            _mm_store_ps(g->sum + 4 * b, _mm_set1_ps((float)row->sum[at]));
            _mm_store_ps(g->step + 4 * b, _mm_set1_ps(row->step[at]));
            _mm_store_si128((__m128i *)(void *)(g->added + 4 * b), _mm_set1_epi32(EIGHT_BITS * row->sum[at]));
        }
    }
}

/* What a tile's loops need. Rows of W are `stride` bytes apart, those of d and m `blocks` numbers. */
typedef struct {
    const uint8_t *q;
    const uint16_t *d, *m;
    size_t blocks, stride, bytes;
} Tile;

INLINE Tile tile_of(const Lm2QMatrix *w, size_t tile, int bits, int one) {
    const size_t bytes = bits == 4 ? 16 : 32, at = tile * LM2_QTILE * w->blocks;
    return (Tile){w->q + at * bytes, w->d + at, w->m + (one ? 0 : at), w->blocks, w->blocks * bytes, bytes};
}

/* For the part of the next tile that lies a tile after the group from `start` on; after the last group all of it was asked for. */
INLINE void ask_next(const Tile *t, size_t start, int one) {
    const size_t ahead = LM2_QTILE * (t->blocks + start);
    ask(t->q, ahead * t->bytes, LM2_QTILE * GROUP * t->bytes);
    ask(t->d, ahead * sizeof *t->d, LM2_QTILE * GROUP * sizeof *t->d);
    if (!one) ask(t->m, ahead * sizeof *t->m, LM2_QTILE * GROUP * sizeof *t->m);
}

/* Float16 of four blocks of four outputs -> two vectors: block after block, its outputs side by side. */
INLINE AVX2 void turn_halves(const uint16_t *from, size_t blocks, __m128i out[2]) {
    __m128i a[OUTPUTS];
    for (int o = 0; o < OUTPUTS; o++) a[o] = _mm_loadl_epi64((const __m128i *)(const void *)(from + o * blocks));
    const __m128i l = _mm_unpacklo_epi16(a[0], a[1]), h = _mm_unpacklo_epi16(a[2], a[3]);
    out[0] = _mm_unpacklo_epi32(l, h), out[1] = _mm_unpackhi_epi32(l, h);
}

#define TURN(NAME, TARGET, VECTOR, BITS, WHOLE) /* 4 numbers of 4 bytes of each lane of four outputs -> the outputs' side by side */ \
    INLINE TARGET void NAME(const uint8_t *from, size_t stride, VECTOR v[4]) { \
        VECTOR a[OUTPUTS]; \
        for (int o = 0; o < OUTPUTS; o++) a[o] = BITS##_loadu_##WHOLE((const void *)(from + o * stride)); \
        const VECTOR l0 = BITS##_unpacklo_epi32(a[0], a[1]), h0 = BITS##_unpackhi_epi32(a[0], a[1]); \
        const VECTOR l1 = BITS##_unpacklo_epi32(a[2], a[3]), h1 = BITS##_unpackhi_epi32(a[2], a[3]); \
        v[0] = BITS##_unpacklo_epi64(l0, l1), v[1] = BITS##_unpackhi_epi64(l0, l1); \
        v[2] = BITS##_unpacklo_epi64(h0, h1), v[3] = BITS##_unpackhi_epi64(h0, h1); \
    }
TURN(turn_256, AVX2, __m256i, _mm256, si256)
TURN(turn_512, AVX512, __m512i, _mm512, si512)

/* Below: whole sums of four outputs with four blocks (512 bits) or with the two of `pair` (256 bits), 256 high + low. */

INLINE AVX512 __m512i dot_512(const Group *x, const uint8_t *from, size_t stride, int bits) {
    __m512i v[4], sums[2];
    if (bits == 4) {
        const __m512i half = _mm512_set1_epi8(15);
        __m512i dot = _mm512_setzero_si512();
        turn_512(from, stride, v);
        __m512i above[4];
        for (int c = 0; c < 4; c++) {
            above[c] = _mm512_and_si512(_mm512_srli_epi16(v[c], 4), half);
            v[c] = _mm512_and_si512(v[c], half);
            dot = _mm512_dpbusd_epi32(dot, v[c], _mm512_loadu_si512(x->high[c]));
            dot = _mm512_dpbusd_epi32(dot, above[c], _mm512_loadu_si512(x->high[c + 4]));
        }
        dot = _mm512_slli_epi32(dot, 8);
        for (int c = 0; c < 4; c++) {
            dot = _mm512_dpbusd_epi32(dot, v[c], _mm512_loadu_si512(x->low[c]));
            dot = _mm512_dpbusd_epi32(dot, above[c], _mm512_loadu_si512(x->low[c + 4]));
        }
        return dot;
    }
    const __m512i top = _mm512_set1_epi8((char)0x80);
    for (int h = 0; h < 2; h++) {
        turn_512(from + 64 * h, stride, v);
        sums[h] = _mm512_setzero_si512();
        for (int c = 0; c < 4; c++) {
            v[c] = _mm512_xor_si512(v[c], top);
            sums[h] = _mm512_dpbusd_epi32(sums[h], v[c], _mm512_loadu_si512(x->high[4 * h + c]));
        }
        sums[h] = _mm512_slli_epi32(sums[h], 8);
        for (int c = 0; c < 4; c++) sums[h] = _mm512_dpbusd_epi32(sums[h], v[c], _mm512_loadu_si512(x->low[4 * h + c]));
    }
    const __m512i all = _mm512_add_epi32(_mm512_shuffle_i32x4(sums[0], sums[1], 0x88), _mm512_shuffle_i32x4(sums[0], sums[1], 0xdd));
    return _mm512_sub_epi32(all, _mm512_loadu_si512(x->added));
}

INLINE AVX2 __m256i at_pair(const int8_t *vector, int pair) { return _mm256_load_si256((const __m256i *)(const void *)(vector + 32 * pair)); }

INLINE AVXVNNI __m256i dot_avxvnni(const Group *x, const uint8_t *from, size_t stride, int pair, int bits) {
    __m256i v[4], sums[2];
    if (bits == 4) {
        const __m256i half = _mm256_set1_epi8(15);
        __m256i dot = _mm256_setzero_si256(), above[4];
        turn_256(from + 32 * pair, stride, v);
        for (int c = 0; c < 4; c++) {
            above[c] = _mm256_and_si256(_mm256_srli_epi16(v[c], 4), half);
            v[c] = _mm256_and_si256(v[c], half);
            dot = _mm256_dpbusd_avx_epi32(dot, v[c], at_pair(x->high[c], pair));
            dot = _mm256_dpbusd_avx_epi32(dot, above[c], at_pair(x->high[c + 4], pair));
        }
        dot = _mm256_slli_epi32(dot, 8);
        for (int c = 0; c < 4; c++) {
            dot = _mm256_dpbusd_avx_epi32(dot, v[c], at_pair(x->low[c], pair));
            dot = _mm256_dpbusd_avx_epi32(dot, above[c], at_pair(x->low[c + 4], pair));
        }
        return dot;
    }
    const __m256i top = _mm256_set1_epi8((char)0x80);
    for (int h = 0; h < 2; h++) {
        turn_256(from + 64 * pair + 32 * h, stride, v);
        sums[h] = _mm256_setzero_si256();
        for (int c = 0; c < 4; c++) {
            v[c] = _mm256_xor_si256(v[c], top);
            sums[h] = _mm256_dpbusd_avx_epi32(sums[h], v[c], at_pair(x->high[4 * pair + c], h));
        }
        sums[h] = _mm256_slli_epi32(sums[h], 8);
        for (int c = 0; c < 4; c++) sums[h] = _mm256_dpbusd_avx_epi32(sums[h], v[c], at_pair(x->low[4 * pair + c], h));
    }
    const __m256i all = _mm256_add_epi32(_mm256_permute2x128_si256(sums[0], sums[1], 0x20), _mm256_permute2x128_si256(sums[0], sums[1], 0x31));
    return _mm256_sub_epi32(all, _mm256_load_si256((const __m256i *)(const void *)(x->added + 8 * pair)));
}

/* 4 bits only: products of bytes, added in int16: 16 numbers, at most 15 * 128 each, are below 2^15. */
INLINE AVX2 __m256i dot_avx2(const Group *x, const uint8_t *from, size_t stride, int pair, int bits) {
    const __m256i half = _mm256_set1_epi8(15), one = _mm256_set1_epi16(1);
    __m256i v[4], high = _mm256_setzero_si256(), low = high;
    turn_256(from + 32 * pair, stride, v);
    for (int c = 0; c < 4; c++) {
        const __m256i above = _mm256_and_si256(_mm256_srli_epi16(v[c], 4), half), below = _mm256_and_si256(v[c], half);
        high = _mm256_add_epi16(high, _mm256_maddubs_epi16(below, at_pair(x->high[c], pair)));
        high = _mm256_add_epi16(high, _mm256_maddubs_epi16(above, at_pair(x->high[c + 4], pair)));
        low = _mm256_add_epi16(low, _mm256_maddubs_epi16(below, at_pair(x->low[c], pair)));
        low = _mm256_add_epi16(low, _mm256_maddubs_epi16(above, at_pair(x->low[c + 4], pair)));
    }
    (void)bits;
    return _mm256_add_epi32(_mm256_slli_epi32(_mm256_madd_epi16(high, one), 8), _mm256_madd_epi16(low, one));
}

/* (dot d + sum m) step of two blocks of four outputs. */
INLINE AVX2 __m256 part_256(__m256i dot, __m128i d, __m256 least, const float *step) {
    const __m256 own = _mm256_mul_ps(_mm256_cvtepi32_ps(dot), _mm256_cvtph_ps(d));
    return _mm256_mul_ps(_mm256_add_ps(own, least), _mm256_load_ps(step));
}

/* y of one tile, 16 outputs. bits and one (a single minimum) are constants. */
#define ROW_256(NAME, TARGET, DOT) \
    INLINE TARGET void NAME(const Tile *t, const Group *x, int bits, int one, float *y) { \
        const __m256 minimum = _mm256_set1_ps(one ? lm2_q_half(*t->m) : 0.0f); \
        __m256 sums[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()}; \
        for (size_t k = 0; k < t->blocks; k += GROUP, x++) { \
            const size_t start = start_of(k, t->blocks), from = k - start; \
            __m256 part[4][2]; /* four outputs each, two pairs of blocks */ \
            ask_next(t, start, one); \
            for (int g = 0; g < 4; g++) { \
                __m128i d[2], m[2]; \
                turn_halves(t->d + OUTPUTS * g * t->blocks + start, t->blocks, d); \
                if (!one) turn_halves(t->m + OUTPUTS * g * t->blocks + start, t->blocks, m); \
                for (int pair = 0; pair < 2; pair++) { \
                    const __m256i dot = DOT(x, t->q + OUTPUTS * g * t->stride + start * t->bytes, t->stride, pair, bits); \
                    const __m256 least = _mm256_mul_ps(_mm256_load_ps(x->sum + 8 * pair), one ? minimum : _mm256_cvtph_ps(m[pair])); \
                    part[g][pair] = part_256(dot, d[pair], least, x->step + 8 * pair); \
                } \
            } \
            for (size_t b = from; b < GROUP; b++) \
                for (int h = 0; h < 2; h++) { \
                    const __m256 low = part[2 * h][b / 2], high = part[2 * h + 1][b / 2]; \
                    sums[h] = _mm256_add_ps(sums[h], b % 2 ? _mm256_permute2f128_ps(low, high, 0x31) : _mm256_permute2f128_ps(low, high, 0x20)); \
                } \
        } \
        _mm256_storeu_ps(y, sums[0]), _mm256_storeu_ps(y + 8, sums[1]); \
    }
ROW_256(row_avx2, AVX2, dot_avx2)
ROW_256(row_avxvnni, AVXVNNI, dot_avxvnni)

INLINE AVX512 __m512 wide_halves(const uint16_t *from, size_t blocks) {
    __m128i half[2];
    turn_halves(from, blocks, half);
    return _mm512_cvtph_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(half[0]), half[1], 1));
}

INLINE AVX512 void row_avx512(const Tile *t, const Group *x, int bits, int one, float *y) {
    const __m512 minimum = _mm512_set1_ps(one ? lm2_q_half(*t->m) : 0.0f);
    __m512 sums = _mm512_setzero_ps();
    for (size_t k = 0; k < t->blocks; k += GROUP, x++) {
        const size_t start = start_of(k, t->blocks), from = k - start;
        __m512 part[4];
        ask_next(t, start, one);
        for (int g = 0; g < 4; g++) {
            const size_t at = OUTPUTS * g * t->blocks + start;
            const __m512i dot = dot_512(x, t->q + at * t->bytes, t->stride, bits);
            const __m512 own = _mm512_mul_ps(_mm512_cvtepi32_ps(dot), wide_halves(t->d + at, t->blocks));
            const __m512 least = _mm512_mul_ps(_mm512_loadu_ps(x->sum), one ? minimum : wide_halves(t->m + at, t->blocks));
            part[g] = _mm512_mul_ps(_mm512_add_ps(own, least), _mm512_loadu_ps(x->step));
        }
        const __m512 l0 = _mm512_shuffle_f32x4(part[0], part[1], 0x44), l1 = _mm512_shuffle_f32x4(part[2], part[3], 0x44);
        const __m512 h0 = _mm512_shuffle_f32x4(part[0], part[1], 0xee), h1 = _mm512_shuffle_f32x4(part[2], part[3], 0xee);
        if (from < 1) sums = _mm512_add_ps(sums, _mm512_shuffle_f32x4(l0, l1, 0x88));
        if (from < 2) sums = _mm512_add_ps(sums, _mm512_shuffle_f32x4(l0, l1, 0xdd));
        if (from < 3) sums = _mm512_add_ps(sums, _mm512_shuffle_f32x4(h0, h1, 0x88));
        sums = _mm512_add_ps(sums, _mm512_shuffle_f32x4(h0, h1, 0xdd));
    }
    _mm512_storeu_ps(y, sums);
}

#define TILES(NAME, TARGET, ROW, EIGHT) \
    TARGET void NAME(const Lm2QMatrix *w, const Lm2QRows *x, size_t first, size_t last, float *y) { \
        const Group *row = x->spread; \
        for (size_t n = first; n < last; n++) { \
            const Tile t = tile_of(w, n, w->bits, w->one_minimum); \
            float *to = y + n * LM2_QTILE; \
            if (EIGHT && w->bits == 8) { \
                if (w->one_minimum) ROW(&t, row, 8, 1, to); \
                else ROW(&t, row, 8, 0, to); \
            } else if (w->one_minimum) ROW(&t, row, 4, 1, to); \
            else ROW(&t, row, 4, 0, to); \
        } \
    }
TILES(lm2_q_row_avx2, AVX2, row_avx2, 0)
TILES(lm2_q_row_avxvnni, AVXVNNI, row_avxvnni, 1)
TILES(lm2_q_row_avx512, AVX512, row_avx512, 1)

#endif
