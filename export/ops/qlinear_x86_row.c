/* One row of x, or a few one after the other, times W with AVX2, AVX-VNNI and AVX-512 VNNI, straight from the file's tiles: what a decoding step is made of.

A vector of a tile has 4 bytes of each of its 16 outputs (256 bits: of half of them), and meets the same 4 numbers of x in every lane. Weights are read
once, in three streams that are asked for ahead. Knows arrays; no ONNX Runtime, no threads, no state. */

#include "qlinear_x86.h"

#ifdef LM2_QLINEAR_X86

INLINE AVX2 __m256i half_vector(const uint8_t *q, int v, int half) {
    return _mm256_loadu_si256((const __m256i *)(const void *)(q + 64 * v + 32 * half));
}

/* Below: whole sums of one block with 8 outputs (or 16), 256 high + low. q: the block in its tile, k: in x. 4 bits: the high halves of bytes stay where
they are, so that their sums are 16 times too large. */

/* 4 bits: products of bytes, added in int16: 16 numbers, at most 15 * 128 each, are below 2^15. 8 bits: products of int16. */
INLINE AVX2 __m256i dot_avx2(const uint8_t *q, const Lm2QRows *x, size_t k, int half, int bits) {
    if (bits == 4) {
        const __m256i low_half = _mm256_set1_epi8(15), one = _mm256_set1_epi16(1);
        const int8_t *h = x->high + k * LM2_QBLOCK, *l = x->low + k * LM2_QBLOCK;
        __m256i high = _mm256_setzero_si256(), low = high;
        for (int v = 0; v < 4; v++) {
            const __m256i both = half_vector(q, v, half);
            const __m256i below = _mm256_and_si256(both, low_half), above = _mm256_and_si256(_mm256_srli_epi16(both, 4), low_half);
            high = _mm256_add_epi16(high, _mm256_maddubs_epi16(below, _mm256_set1_epi32(four(h + 4 * v))));
            high = _mm256_add_epi16(high, _mm256_maddubs_epi16(above, _mm256_set1_epi32(four(h + 16 + 4 * v))));
            low = _mm256_add_epi16(low, _mm256_maddubs_epi16(below, _mm256_set1_epi32(four(l + 4 * v))));
            low = _mm256_add_epi16(low, _mm256_maddubs_epi16(above, _mm256_set1_epi32(four(l + 16 + 4 * v))));
        }
        return _mm256_add_epi32(_mm256_slli_epi32(_mm256_madd_epi16(high, one), 8), _mm256_madd_epi16(low, one));
    }
    __m256i first = _mm256_setzero_si256(), last = first; /* four outputs each, two sums of each */
    for (int v = 0; v < 8; v++) {
        const __m128i *from = (const __m128i *)(const void *)(q + 64 * v + 32 * half);
        int64_t numbers;
        memcpy(&numbers, x->number + k * LM2_QBLOCK + 4 * v, sizeof numbers);
        const __m256i n = _mm256_set1_epi64x(numbers);
        first = _mm256_add_epi32(first, _mm256_madd_epi16(_mm256_cvtepi8_epi16(_mm_loadu_si128(from)), n));
        last = _mm256_add_epi32(last, _mm256_madd_epi16(_mm256_cvtepi8_epi16(_mm_loadu_si128(from + 1)), n));
    }
    return _mm256_permute4x64_epi64(_mm256_hadd_epi32(first, last), 0xd8);
}

INLINE AVXVNNI __m256i dot_avxvnni(const uint8_t *q, const Lm2QRows *x, size_t k, int half, int bits) {
    const int8_t *h = x->high + k * LM2_QBLOCK, *l = x->low + k * LM2_QBLOCK;
    __m256i high = _mm256_setzero_si256(), low = high, high16 = high, low16 = high;
    if (bits == 4) {
        const __m256i below = _mm256_set1_epi8(15), above = _mm256_set1_epi8((char)0xf0);
        for (int v = 0; v < 4; v++) {
            const __m256i both = half_vector(q, v, half), a = _mm256_and_si256(both, below), b = _mm256_and_si256(both, above);
            high = _mm256_dpbusd_avx_epi32(high, a, _mm256_set1_epi32(four(h + 4 * v)));
            high16 = _mm256_dpbusd_avx_epi32(high16, b, _mm256_set1_epi32(four(h + 16 + 4 * v)));
            low = _mm256_dpbusd_avx_epi32(low, a, _mm256_set1_epi32(four(l + 4 * v)));
            low16 = _mm256_dpbusd_avx_epi32(low16, b, _mm256_set1_epi32(four(l + 16 + 4 * v)));
        }
        const __m256i all16 = _mm256_add_epi32(_mm256_slli_epi32(high16, 8), low16);
        return _mm256_add_epi32(_mm256_add_epi32(_mm256_slli_epi32(high, 8), low), _mm256_srai_epi32(all16, 4));
    }
    const __m256i top = _mm256_set1_epi8((char)0x80);
    for (int v = 0; v < 8; v++) {
        const __m256i a = _mm256_xor_si256(half_vector(q, v, half), top);
        high = _mm256_dpbusd_avx_epi32(high, a, _mm256_set1_epi32(four(h + 4 * v)));
        low = _mm256_dpbusd_avx_epi32(low, a, _mm256_set1_epi32(four(l + 4 * v)));
    }
    const __m256i added = _mm256_slli_epi32(_mm256_set1_epi32(x->sum[k]), ADDED_SHIFT);
    return _mm256_sub_epi32(_mm256_add_epi32(_mm256_slli_epi32(high, 8), low), added);
}

INLINE AVX512 __m512i dot_avx512(const uint8_t *q, const Lm2QRows *x, size_t k, int bits) {
    const int8_t *h = x->high + k * LM2_QBLOCK, *l = x->low + k * LM2_QBLOCK;
    __m512i high = _mm512_setzero_si512(), low = high, high16 = high, low16 = high;
    if (bits == 4) {
        const __m512i below = _mm512_set1_epi8(15), above = _mm512_set1_epi8((char)0xf0);
        for (int v = 0; v < 4; v++) {
            const __m512i both = _mm512_loadu_si512(q + 64 * v), a = _mm512_and_si512(both, below), b = _mm512_and_si512(both, above);
            high = _mm512_dpbusd_epi32(high, a, _mm512_set1_epi32(four(h + 4 * v)));
            high16 = _mm512_dpbusd_epi32(high16, b, _mm512_set1_epi32(four(h + 16 + 4 * v)));
            low = _mm512_dpbusd_epi32(low, a, _mm512_set1_epi32(four(l + 4 * v)));
            low16 = _mm512_dpbusd_epi32(low16, b, _mm512_set1_epi32(four(l + 16 + 4 * v)));
        }
        const __m512i all16 = _mm512_add_epi32(_mm512_slli_epi32(high16, 8), low16);
        return _mm512_add_epi32(_mm512_add_epi32(_mm512_slli_epi32(high, 8), low), _mm512_srai_epi32(all16, 4));
    }
    const __m512i top = _mm512_set1_epi8((char)0x80);
    for (int v = 0; v < 8; v++) {
        const __m512i a = _mm512_xor_si512(_mm512_loadu_si512(q + 64 * v), top);
        high = _mm512_dpbusd_epi32(high, a, _mm512_set1_epi32(four(h + 4 * v)));
        low = _mm512_dpbusd_epi32(low, a, _mm512_set1_epi32(four(l + 4 * v)));
    }
    const __m512i added = _mm512_slli_epi32(_mm512_set1_epi32(x->sum[k]), ADDED_SHIFT);
    return _mm512_sub_epi32(_mm512_add_epi32(_mm512_slli_epi32(high, 8), low), added);
}

/* y of one tile, 16 outputs, and row r. bits and one (a single minimum) are constants. */
#define ROW_256(NAME, TARGET, DOT) \
    INLINE TARGET void NAME(const Lm2QMatrix *w, const Lm2QRows *x, size_t r, size_t tile, int bits, int one, float *y) { \
        const __m256 minimum = _mm256_set1_ps(one ? lm2_q_half(*w->m) : 0.0f); \
        __m256 sums[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()}; \
        for (size_t k = 0; k < w->blocks; k++) { \
            const size_t at = tile * w->blocks + k, own = r * w->blocks + k; \
            const uint8_t *q = w->q + at * lm2_q_block_bytes(bits); \
            const __m256 sum = _mm256_set1_ps((float)x->sum[own]), step = _mm256_set1_ps(x->step[own]); \
            ask_block(w, at, bits, one); \
            for (int h = 0; h < 2; h++) { \
                const __m256 most = _mm256_mul_ps(_mm256_cvtepi32_ps(DOT(q, x, own, h, bits)), wide(w->d + at * LM2_QTILE + 8 * h)); \
                const __m256 least = _mm256_mul_ps(sum, one ? minimum : wide(w->m + at * LM2_QTILE + 8 * h)); \
                sums[h] = _mm256_add_ps(sums[h], _mm256_mul_ps(_mm256_add_ps(most, least), step)); \
            } \
        } \
        _mm256_storeu_ps(y, sums[0]), _mm256_storeu_ps(y + 8, sums[1]); \
    }
ROW_256(row_avx2, AVX2, dot_avx2)
ROW_256(row_avxvnni, AVXVNNI, dot_avxvnni)

INLINE AVX512 void row_avx512(const Lm2QMatrix *w, const Lm2QRows *x, size_t r, size_t tile, int bits, int one, float *y) {
    const __m512 minimum = _mm512_set1_ps(one ? lm2_q_half(*w->m) : 0.0f);
    __m512 sums = _mm512_setzero_ps();
    for (size_t k = 0; k < w->blocks; k++) {
        const size_t at = tile * w->blocks + k, own = r * w->blocks + k;
        ask_block(w, at, bits, one);
        const __m512i dot = dot_avx512(w->q + at * lm2_q_block_bytes(bits), x, own, bits);
        const __m512 most = _mm512_mul_ps(_mm512_cvtepi32_ps(dot), wide_512(w->d + at * LM2_QTILE));
        const __m512 least = _mm512_mul_ps(_mm512_set1_ps((float)x->sum[own]), one ? minimum : wide_512(w->m + at * LM2_QTILE));
        sums = _mm512_add_ps(sums, _mm512_mul_ps(_mm512_add_ps(most, least), _mm512_set1_ps(x->step[own])));
    }
    _mm512_storeu_ps(y, sums);
}

#define TILES(NAME, TARGET, ROW) \
    TARGET void NAME(const Lm2QMatrix *w, const Lm2QRows *x, size_t rows, size_t first, size_t last, float *y) { \
        for (size_t tile = first; tile < last; tile++) { \
            const size_t o = tile * LM2_QTILE, here = w->outputs - o < LM2_QTILE ? w->outputs - o : LM2_QTILE; \
            for (size_t r = 0; r < rows; r++) { \
                float room[LM2_QTILE], *own = y + r * w->outputs + o, *to = here < LM2_QTILE ? room : own; \
                if (w->bits == 4) { \
                    if (w->one_minimum) ROW(w, x, r, tile, 4, 1, to); \
                    else ROW(w, x, r, tile, 4, 0, to); \
                } else if (w->one_minimum) ROW(w, x, r, tile, 8, 1, to); \
                else ROW(w, x, r, tile, 8, 0, to); \
                if (here < LM2_QTILE) memcpy(own, room, here * sizeof *y); \
            } \
        } \
    }
TILES(lm2_q_row_avx2, AVX2, row_avx2)
TILES(lm2_q_row_avxvnni, AVXVNNI, row_avxvnni)
TILES(lm2_q_row_avx512, AVX512, row_avx512)

#endif
