/* What QLinear's x86-64 files share: targets, and a few moves. */

#ifndef LM2_QLINEAR_X86_H
#define LM2_QLINEAR_X86_H

#include "qlinear.h"

#ifdef LM2_QLINEAR_X86

#include <immintrin.h>

#define AVX2 __attribute__((target("avx2,f16c")))
#ifdef LM2_VNNI_STAND_IN /* for tests: these instructions written out, so that their code runs on processors that lack them */
#include LM2_VNNI_STAND_IN
#define AVXVNNI AVX2
#define AVX512 AVX2
#define AMX AVX2
#else
#define AVXVNNI __attribute__((target("avx2,f16c,avxvnni")))
#define AVX512 __attribute__((target("avx2,f16c,avx512f,avx512bw,avx512vl,avx512vnni")))
#define AMX __attribute__((target("avx2,f16c,avx512f,avx512bw,avx512vl,avx512vnni,amx-tile,amx-int8")))
#endif
#define INLINE static inline __attribute__((always_inline))

enum { LINE = 64, AHEAD = 2560, ADDED_SHIFT = 7 /* 128 is added to 8-bit numbers, which makes them unsigned */ };

/* A few rows times tiles first .. last - 1, one after the other (qlinear_x86_row.c). */
void lm2_q_row_avx2(const Lm2QMatrix *w, const Lm2QRows *x, size_t rows, size_t first, size_t last, float *y);
void lm2_q_row_avxvnni(const Lm2QMatrix *w, const Lm2QRows *x, size_t rows, size_t first, size_t last, float *y);
void lm2_q_row_avx512(const Lm2QMatrix *w, const Lm2QRows *x, size_t rows, size_t first, size_t last, float *y);

/* Rows of x times tiles first .. last - 1, with AVX2 (qlinear_x86_rows.c). */
void lm2_q_rows_avx2(const Lm2QMatrix *w, const Lm2QRows *x, size_t rows, size_t first, size_t last, float *y);

/* The same with AMX (qlinear_x86_amx.c), LM2_Q_AMX_ROWS rows at least, where the system lets this process. */
enum { LM2_Q_AMX_ROWS = 16 };
void lm2_q_rows_amx(const Lm2QMatrix *w, const Lm2QRows *x, size_t rows, size_t first, size_t last, float *y);
int lm2_q_may_use_amx(void);

/* For bytes at `from` + `offset`, which need not be there: no access, and no pointer past an end. */
INLINE void ask(const void *from, size_t offset, size_t bytes) {
    for (size_t at = 0; at < bytes; at += LINE) _mm_prefetch((const char *)((uintptr_t)from + offset + at), _MM_HINT_T0);
}

/* For what stands AHEAD bytes of q after block `at` of W's tiles, one after the other. */
INLINE void ask_block(const Lm2QMatrix *w, size_t at, int bits, int one) {
    const size_t bytes = lm2_q_block_bytes(bits), later = at + AHEAD / bytes;
    ask(w->q, later * bytes, bytes);
    ask(w->d, later * LM2_QTILE * sizeof *w->d, 1);
    if (!one) ask(w->m, later * LM2_QTILE * sizeof *w->m, 1);
}

INLINE int32_t four(const int8_t *from) {
    int32_t all;
    memcpy(&all, from, sizeof all);
    return all;
}

/* Float16 of 8 outputs, or of a tile's 16, in float32. */
INLINE AVX2 __m256 wide(const uint16_t *from) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)from)); }
INLINE AVX512 __m512 wide_512(const uint16_t *from) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)from)); }

INLINE AVX2 void wide_tile(const uint16_t *from, float *to) {
    for (int h = 0; h < 2; h++) _mm256_store_ps(to + 8 * h, wide(from + 8 * h));
}

#endif
#endif
