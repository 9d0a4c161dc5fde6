/* Rows of a tile turned, so that one vector holds the same numbers of several of its 16 outputs. What QLinear's x86-64 files for many rows share. */

#ifndef LM2_QLINEAR_X86_TURN_H
#define LM2_QLINEAR_X86_TURN_H

#include "qlinear_x86.h"

#ifdef LM2_QLINEAR_X86

INLINE AVX2 __m256i two(const void *low, const void *high) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(low)), _mm_loadu_si128(high), 1);
}

/* 16 bytes of each of 8 outputs -> 4 vectors, each with 4 bytes of every output. */
INLINE AVX2 void turn(const uint8_t *const *from, size_t offset, __m256i out[4]) {
    __m256i a[4];
    for (int c = 0; c < 4; c++) a[c] = two(from[c] + offset, from[c + 4] + offset);
    const __m256i l0 = _mm256_unpacklo_epi32(a[0], a[1]), h0 = _mm256_unpackhi_epi32(a[0], a[1]);
    const __m256i l1 = _mm256_unpacklo_epi32(a[2], a[3]), h1 = _mm256_unpackhi_epi32(a[2], a[3]);
    out[0] = _mm256_unpacklo_epi64(l0, l1), out[1] = _mm256_unpackhi_epi64(l0, l1);
    out[2] = _mm256_unpacklo_epi64(h0, h1), out[3] = _mm256_unpackhi_epi64(h0, h1);
}

/* 8 float16 of each of 16 outputs -> float32, (8, 16). */
INLINE AVX2 void turn_halves(const uint16_t *const *from, size_t offset, float (*to)[LM2_QTILE]) {
    __m256i a[8], b[8];
    for (int c = 0; c < 8; c++) a[c] = two(from[c] + offset, from[c + 8] + offset);
    for (int c = 0; c < 4; c++) b[2 * c] = _mm256_unpacklo_epi16(a[2 * c], a[2 * c + 1]), b[2 * c + 1] = _mm256_unpackhi_epi16(a[2 * c], a[2 * c + 1]);
    for (int c = 0; c < 2; c++) {
        const __m256i *s = b + 4 * c;
        a[4 * c] = _mm256_unpacklo_epi32(s[0], s[2]), a[4 * c + 1] = _mm256_unpackhi_epi32(s[0], s[2]);
        a[4 * c + 2] = _mm256_unpacklo_epi32(s[1], s[3]), a[4 * c + 3] = _mm256_unpackhi_epi32(s[1], s[3]);
    }
    for (int c = 0; c < 4; c++) b[2 * c] = _mm256_unpacklo_epi64(a[c], a[c + 4]), b[2 * c + 1] = _mm256_unpackhi_epi64(a[c], a[c + 4]);
    for (int c = 0; c < 8; c++) {
        _mm256_store_ps(to[c], _mm256_cvtph_ps(_mm256_castsi256_si128(b[c])));
        _mm256_store_ps(to[c] + 8, _mm256_cvtph_ps(_mm256_extracti128_si256(b[c], 1)));
    }
}

/* The same for blocks `first` .. `first + blocks` - 1 of rows of float16. The last ones are turned with those before them, or, fewer than 8 in all,
over a copy: rows end there. */
INLINE AVX2 void turn_scales(const uint16_t *const *from, size_t first, size_t blocks, float (*to)[LM2_QTILE]) {
    size_t k = 0;
    for (; k + 8 <= blocks; k += 8) turn_halves(from, first + k, to + k);
    if (k == blocks) return;
    if (blocks >= 8) {
        turn_halves(from, first + blocks - 8, to + blocks - 8);
        return;
    }
    uint16_t rest[LM2_QTILE][8];
    const uint16_t *rows[LM2_QTILE];
    for (int o = 0; o < LM2_QTILE; o++) {
        for (size_t j = 0; j < 8; j++) rest[o][j] = j < blocks ? from[o][first + j] : 0;
        rows[o] = rest[o];
    }
    turn_halves(rows, 0, to);
}

/* Where the rows of one tile begin. Outputs past the last one are copies of it. */
typedef struct {
    const uint8_t *q[LM2_QTILE];
    const uint16_t *d[LM2_QTILE], *m[LM2_QTILE];
    size_t bytes, next; /* of a block; the next tile's first block */
} TileRows;

INLINE AVX2 void find_tile(const Lm2QMatrix *w, size_t tile, TileRows *t) {
    t->bytes = w->bits == 4 ? 16 : 32;
    t->next = (tile + 1) * LM2_QTILE * w->blocks;
    for (size_t o = 0; o < LM2_QTILE; o++) {
        const size_t here = tile * LM2_QTILE + o, output = here < w->outputs ? here : w->outputs - 1;
        t->q[o] = w->q + output * w->blocks * t->bytes;
        t->d[o] = w->d + output * w->blocks;
        t->m[o] = w->m + (w->one_minimum ? 0 : output * w->blocks);
    }
}

/* Ask for what stands where block k of this tile does in the next one: in the end all of that tile is asked for. */
INLINE AVX2 void ask_tile(const Lm2QMatrix *w, const TileRows *t, size_t k) {
    const size_t ahead = t->next + k * LM2_QTILE;
    ask(w->q, ahead * t->bytes, LM2_QTILE * t->bytes);
    if (k % 2) return;
    ask(w->d, ahead * sizeof *w->d, LINE);
    if (!w->one_minimum) ask(w->m, ahead * sizeof *w->m, LINE);
}

#endif
#endif
