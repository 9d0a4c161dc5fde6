/* ai.lm2::QLinear in plain C, for any processor: a tile's block after the other, one output at a time. The other levels are measured against it.

Knows arrays; no ONNX Runtime, no threads, no state. */

#include "qlinear.h"

static int always(void) { return 1; }

static void round_rows(const float *x, size_t first, size_t last, const Lm2QRows *rows) { lm2_q_round(x, first, last, rows); }

/* Block `at` of W's tiles, one after the other: each output's bytes together. */
LM2_Q_INLINE void read_tile(const Lm2QMatrix *w, size_t at, int bits, uint8_t (*to)[LM2_QBLOCK]) {
    const uint8_t *q = w->q + at * lm2_q_block_bytes(bits);
    for (int v = 0; v < bits; v++)
        for (int o = 0; o < LM2_QTILE; o++) memcpy(to[o] + 4 * v, q + 4 * (LM2_QTILE * v + o), 4);
}

LM2_Q_INLINE void read_block(const uint8_t *q, int bits, int16_t *to) {
    if (bits == 8) {
        for (int j = 0; j < LM2_QBLOCK; j++) to[j] = (int8_t)q[j];
        return;
    }
    for (int j = 0; j < LM2_QBLOCK / 2; j++) {
        to[j] = q[j] & 15;
        to[j + LM2_QBLOCK / 2] = q[j] >> 4;
    }
}

/* `bits` is a constant. */
LM2_Q_INLINE void multiply(const Lm2QMatrix *w, const Lm2QRows *x, size_t rows, size_t first, size_t last, int bits, float *y) {
    for (size_t at = first * w->blocks; at < last * w->blocks; at++) {
        const size_t k = at % w->blocks, from = at / w->blocks * LM2_QTILE, here = w->outputs - from < LM2_QTILE ? w->outputs - from : LM2_QTILE;
        uint8_t bytes[LM2_QTILE][LM2_QBLOCK];
        read_tile(w, at, bits, bytes);
        for (size_t o = 0; o < here; o++) {
            int16_t q[LM2_QBLOCK];
            const float d = lm2_q_half(w->d[at * LM2_QTILE + o]), m = lm2_q_half(w->m[w->one_minimum ? 0 : at * LM2_QTILE + o]);
            read_block(bytes[o], bits, q);
            for (size_t r = 0; r < rows; r++) {
                const size_t own = r * w->blocks + k;
                const int16_t *n = x->number + own * LM2_QBLOCK;
                float *to = y + r * w->outputs + from + o;
                int32_t dot = 0;
                for (int j = 0; j < LM2_QBLOCK; j++) dot += (int32_t)q[j] * n[j];
                const float part = ((float)dot * d + (float)x->sum[own] * m) * x->step[own];
                *to = (k ? *to : 0.0f) + part;
            }
        }
    }
}

static void tiles(const Lm2QMatrix *w, const Lm2QRows *x, size_t rows, size_t first, size_t last, float *y) {
    if (w->bits == 4) multiply(w, x, rows, first, last, 4, y);
    else multiply(w, x, rows, first, last, 8, y);
}

const Lm2QLevel LM2_QLINEAR_PLAIN = {"plain", always, round_rows, tiles};

#if !defined(LM2_QLINEAR_X86) && !defined(LM2_QLINEAR_NEON)
const Lm2QLevel *lm2_qlinear_levels(size_t *count) { return *count = 0, (const Lm2QLevel *)0; }
#endif
