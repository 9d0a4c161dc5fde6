/* ai.lm2::QLinear in plain C, for any processor: one output at a time, block after block. The other levels are measured against it.

Knows arrays; no ONNX Runtime, no threads, no state. */

#include "qlinear.h"

static int always(void) { return 1; }

static void round_rows(const float *x, size_t first, size_t last, const Lm2QRows *rows) { lm2_q_round(x, first, last, rows); }

/* Block `at` of W's tiles, one after the other, of output `o` of its tile. */
static void read_block(const Lm2QMatrix *w, size_t at, size_t o, int16_t *to) {
    const uint8_t *q = w->q + at * lm2_q_block_bytes(w->bits) + 4 * o;
    for (int j = 0; j < w->bits * 4; j++) {
        const uint8_t byte = q[j / 4 * (4 * LM2_QTILE) + j % 4];
        if (w->bits == 8) {
            to[j] = (int8_t)byte;
        } else {
            to[j] = byte & 15;
            to[j + LM2_QBLOCK / 2] = byte >> 4;
        }
    }
}

static void tiles(const Lm2QMatrix *w, const Lm2QRows *x, size_t rows, size_t first, size_t last, float *y) {
    const size_t end = last * LM2_QTILE < w->outputs ? last * LM2_QTILE : w->outputs;
    for (size_t o = first * LM2_QTILE; o < end; o++) {
        for (size_t k = 0; k < w->blocks; k++) {
            int16_t q[LM2_QBLOCK];
            const size_t block = o / LM2_QTILE * w->blocks + k, at = block * LM2_QTILE + o % LM2_QTILE;
            const float d = lm2_q_half(w->d[at]), m = lm2_q_half(w->m[w->one_minimum ? 0 : at]);
            read_block(w, block, o % LM2_QTILE, q);
            for (size_t r = 0; r < rows; r++) {
                const size_t own = r * w->blocks + k;
                const int16_t *n = x->number + own * LM2_QBLOCK;
                int32_t dot = 0;
                for (int j = 0; j < LM2_QBLOCK; j++) dot += (int32_t)q[j] * n[j];
                const float part = ((float)dot * d + (float)x->sum[own] * m) * x->step[own];
                y[r * w->outputs + o] = (k ? y[r * w->outputs + o] : 0.0f) + part;
            }
        }
    }
}

const Lm2QLevel LM2_QLINEAR_PLAIN = {"plain", always, round_rows, tiles};

#if !defined(LM2_QLINEAR_X86) && !defined(LM2_QLINEAR_NEON)
const Lm2QLevel *lm2_qlinear_levels(size_t *count) { return *count = 0, (const Lm2QLevel *)0; }
#endif
