/* ai.lm2::QLinear in plain C, for any processor: one output at a time, block after block. The other levels are measured against it.

Knows arrays; no ONNX Runtime, no threads, no state. */

#include "qlinear.h"

static int always(void) { return 1; }

static void round_rows(const float *x, size_t first, size_t last, const Lm2QRows *rows) { lm2_q_round(x, first, last, rows); }

static void read_block(const Lm2QMatrix *w, size_t at, int16_t *to) {
    if (w->bits == 8) {
        const int8_t *q = (const int8_t *)w->q + at * LM2_QBLOCK;
        for (int j = 0; j < LM2_QBLOCK; j++) to[j] = q[j];
        return;
    }
    const uint8_t *q = w->q + at * (LM2_QBLOCK / 2);
    for (int j = 0; j < LM2_QBLOCK / 2; j++) {
        to[j] = q[j] & 15;
        to[j + LM2_QBLOCK / 2] = q[j] >> 4;
    }
}

static void tiles(const Lm2QMatrix *w, const Lm2QRows *x, size_t rows, size_t first, size_t last, float *y) {
    const size_t end = last * LM2_QTILE < w->outputs ? last * LM2_QTILE : w->outputs;
    for (size_t o = first * LM2_QTILE; o < end; o++) {
        for (size_t k = 0; k < w->blocks; k++) {
            int16_t q[LM2_QBLOCK];
            const size_t at = o * w->blocks + k;
            const float d = lm2_q_half(w->d[at]), m = lm2_q_half(w->m[w->one_minimum ? 0 : at]);
            read_block(w, at, q);
            for (size_t r = 0; r < rows; r++) {
                const size_t block = r * w->blocks + k;
                const int16_t *n = x->number + block * LM2_QBLOCK;
                int32_t dot = 0;
                for (int j = 0; j < LM2_QBLOCK; j++) dot += (int32_t)q[j] * n[j];
                const float part = ((float)dot * d + (float)x->sum[block] * m) * x->step[block];
                y[r * w->outputs + o] = (k ? y[r * w->outputs + o] : 0.0f) + part;
            }
        }
    }
}

const Lm2QLevel LM2_QLINEAR_PLAIN = {"plain", always, round_rows, NULL, tiles};

#if !defined(LM2_QLINEAR_X86) && !defined(LM2_QLINEAR_NEON)
const Lm2QLevel *lm2_qlinear_levels(size_t *count) { return *count = 0, (const Lm2QLevel *)0; }
#endif
