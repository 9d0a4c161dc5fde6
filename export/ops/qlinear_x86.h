/* What QLinear's two x86-64 files share: targets, and a few moves. */

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
#else
#define AVXVNNI __attribute__((target("avx2,f16c,avxvnni")))
#define AVX512 __attribute__((target("avx2,f16c,avx512f,avx512bw,avx512vl,avx512vnni")))
#endif
#define INLINE static inline __attribute__((always_inline))

enum { LINE = 64 };

/* Whether lm2_q_row_* may be called: one row, spread, and W at least a tile and a group of blocks. */
INLINE int lm2_q_row_fits(const Lm2QMatrix *w, const Lm2QRows *x, size_t rows) {
    return rows == 1 && x->spread != NULL && w->blocks >= LM2_QGROUP && w->outputs >= LM2_QTILE;
}

/* One row, already spread, times whole tiles first .. last - 1 (qlinear_x86_row.c). */
void lm2_q_spread(const Lm2QRows *row, int bits);
void lm2_q_row_avx2(const Lm2QMatrix *w, const Lm2QRows *x, size_t first, size_t last, float *y); /* 4 bits */
void lm2_q_row_avxvnni(const Lm2QMatrix *w, const Lm2QRows *x, size_t first, size_t last, float *y);
void lm2_q_row_avx512(const Lm2QMatrix *w, const Lm2QRows *x, size_t first, size_t last, float *y);

/* Rows of x times tiles first .. last - 1, with AVX2 (qlinear_x86_rows.c). */
void lm2_q_rows_avx2(const Lm2QMatrix *w, const Lm2QRows *x, size_t rows, size_t first, size_t last, float *y);

/* For bytes at `from` + `offset`, which need not be there: no access, and no pointer past an end. */
INLINE void ask(const void *from, size_t offset, size_t bytes) {
    for (size_t at = 0; at < bytes; at += LINE) _mm_prefetch((const char *)((uintptr_t)from + offset + at), _MM_HINT_T0);
}

INLINE int32_t four(const int8_t *from) {
    int32_t all;
    memcpy(&all, from, sizeof all);
    return all;
}

#endif
#endif
