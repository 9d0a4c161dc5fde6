/* ai.lm2::QLinear, version 2: y = x W^T for x (rows, i) in float32 and W (o, i) in blocks of 32 numbers of 4 or 8 bits, in tiles of 16 outputs.

What the operator (qlinear.c) and its arithmetic (qlinear_plain.c, qlinear_x86*.c, qlinear_neon.c) say to each other. Every level below makes the same bits:
x is rounded to whole numbers by one rule, sums of products are exact in int32, and floats meet in one order, block after block, without fused
operations. Sources must be compiled with -ffp-contract=off. */

#ifndef LM2_QLINEAR_H
#define LM2_QLINEAR_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "ort_abi.h"

/* The operator as ONNX Runtime takes it, for CPUExecutionProvider: with 4 bits (q is uint8) and with 8 (int8). */
extern const OrtCustomOp LM2_QLINEAR[2];

enum { LM2_QBLOCK = 32, LM2_QTILE = 16, LM2_QMOST = 32639 }; /* numbers of a block, outputs of a tile, largest rounded input: 127 * 256 + 127 */

/* W as the file has it: 16 outputs o (a tile t) together, 4 bytes of each side by side. Byte 4 v + b of a block of 4 bits has number j = 4 v + b in its low
half and number j + 16 in its high half. Outputs past the last one are there too, of any numbers; nothing of them is stored. */
typedef struct {
    const uint8_t *q;      /* (t, k, v, 16, 4): 4 v for 4 bits; 8 v, the bytes of int8, for 8 bits */
    const uint16_t *d, *m; /* (t, k, 16) float16; m is one number where one_minimum */
    size_t outputs, blocks;
    int bits, one_minimum;
} Lm2QMatrix;

/* Bytes of a block in all outputs of a tile. */
static inline size_t lm2_q_block_bytes(int bits) { return bits == 4 ? LM2_QTILE * LM2_QBLOCK / 2 : LM2_QTILE * LM2_QBLOCK; }

/* Rows of x, rounded: x = number * step to about 16 bits, number = 256 * high + low. */
typedef struct {
    int16_t *number;    /* (rows, k, 32) */
    int8_t *high, *low; /* (rows, k, 32) */
    float *step;        /* (rows, k); NaN for a block with a NaN or an infinity */
    int32_t *sum;       /* (rows, k): of a block's numbers */
    size_t blocks;
} Lm2QRows;

/* One way to compute it. `there` says whether this processor can. */
typedef struct {
    const char *name;
    int (*there)(void);
    void (*round)(const float *x, size_t first, size_t last, const Lm2QRows *rows); /* rows first .. last - 1 of x (rows, i) */
    void (*tiles)(const Lm2QMatrix *w, const Lm2QRows *x, size_t rows, size_t first, size_t last, float *y); /* y (rows, o), tiles of outputs */
} Lm2QLevel;

extern const Lm2QLevel LM2_QLINEAR_PLAIN;

/* Which levels beside plain C this compiler can make. */
#if defined(__x86_64__) && (defined(__clang__) ? __clang_major__ >= 12 : defined(__GNUC__) && __GNUC__ >= 11)
#define LM2_QLINEAR_X86
#elif defined(__aarch64__) && defined(__ARM_NEON) && (defined(__GNUC__) || defined(__clang__))
#define LM2_QLINEAR_NEON
#endif

/* They, the best first (qlinear_x86.c, qlinear_neon.c). */
const Lm2QLevel *lm2_qlinear_levels(size_t *count);

#if defined(__GNUC__) || defined(__clang__)
#define LM2_Q_INLINE static inline __attribute__((always_inline))
#else
#define LM2_Q_INLINE static inline
#endif

LM2_Q_INLINE float lm2_q_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* No subnormal float on the way: flushing modes change nothing. */
LM2_Q_INLINE float lm2_q_half(uint16_t half) {
    const uint32_t a = half & 0x7fffu, sign = (half & 0x8000u) ? 0x80000000u : 0;
    if (a < 0x0400u) return (sign ? -0x1p-24f : 0x1p-24f) * (float)a;
    return lm2_q_float(((a << 13) + ((a >= 0x7c00u ? 224u : 112u) << 23)) | sign);
}

/* One block of x: the largest magnitude is 32639 steps, and every number the nearest whole one, to even. Blocks below 2^-100 count as zeros. */
LM2_Q_INLINE void lm2_q_round_block(const float *x, size_t at, const Lm2QRows *rows) {
    int32_t most = 0, sum = 0;
    for (int j = 0; j < LM2_QBLOCK; j++) {
        int32_t bits;
        memcpy(&bits, x + j, sizeof bits);
        bits &= 0x7fffffff;
        most = bits > most ? bits : most;
    }
    const float largest = lm2_q_float((uint32_t)most);
    const int number = most < 0x7f800000, counts = number && largest >= 0x1p-100f;
    const float inverse = counts ? (float)LM2_QMOST / largest : 0.0f;
    int16_t *to = rows->number + at * LM2_QBLOCK;
    int8_t *high = rows->high + at * LM2_QBLOCK, *low = rows->low + at * LM2_QBLOCK;
    for (int j = 0; j < LM2_QBLOCK; j++) {
        const float scaled = (number ? x[j] : 0.0f) * inverse;
        const int32_t n = (int32_t)((scaled + 0x1.8p23f) - 0x1.8p23f); /* the sum leaves the nearest whole number, to even */
        const int32_t h = (n + 128) >> 8;
        sum += n;
        to[j] = (int16_t)n;
        high[j] = (int8_t)h;
        low[j] = (int8_t)(n - 256 * h);
    }
    rows->sum[at] = sum;
    rows->step[at] = counts ? largest / (float)LM2_QMOST : number ? 0.0f : lm2_q_float(0x7fc00000u);
}

LM2_Q_INLINE void lm2_q_round(const float *x, size_t first, size_t last, const Lm2QRows *rows) {
    for (size_t at = first * rows->blocks; at < last * rows->blocks; at++) lm2_q_round_block(x + at * LM2_QBLOCK, at, rows);
}

#endif
