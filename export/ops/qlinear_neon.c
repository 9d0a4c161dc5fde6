/* ai.lm2::QLinear with ARM's dot product (SDOT, ARMv8.2 and later): 4 outputs at once, a lane each, and up to 4 rows of x.

Knows arrays; no ONNX Runtime, no threads, no state. */

#include "qlinear.h"

#ifdef LM2_QLINEAR_NEON

#include <arm_neon.h>

#ifdef __linux__
#include <sys/auxv.h>
#endif

#define DOT __attribute__((target("arch=armv8.2-a+dotprod")))
#define INLINE static inline __attribute__((always_inline))

enum { OUTPUTS = 4, AT_ONCE = 4, ASIMDDP = 1 << 20 /* of the hardware's capabilities as Linux lists them */ };

/* Block k of 4 outputs: their numbers and, in lanes, scales and minima. */
typedef struct {
    int8x16_t q[OUTPUTS][2];
    float32x4_t d, m;
} Block;

INLINE float32x4_t halves(const uint16_t *from, size_t stride) {
    uint16_t four[OUTPUTS];
    for (size_t o = 0; o < OUTPUTS; o++) four[o] = from[o * stride];
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(four)));
}

INLINE DOT Block read_block(const Lm2QMatrix *w, size_t output, size_t k, int bits) {
    Block b;
    const size_t at = output * w->blocks + k;
    for (size_t o = 0; o < OUTPUTS; o++) {
        const uint8_t *from = w->q + (at + o * w->blocks) * (bits == 4 ? LM2_QBLOCK / 2 : LM2_QBLOCK);
        const uint8x16_t first = vld1q_u8(from);
        b.q[o][0] = vreinterpretq_s8_u8(bits == 4 ? vandq_u8(first, vdupq_n_u8(15)) : first);
        b.q[o][1] = vreinterpretq_s8_u8(bits == 4 ? vshrq_n_u8(first, 4) : vld1q_u8(from + LM2_QBLOCK / 2));
    }
    b.d = halves(w->d + at, w->blocks);
    b.m = w->one_minimum ? vdupq_n_f32(lm2_q_half(*w->m)) : halves(w->m + at, w->blocks);
    return b;
}

/* 256 high + low, summed over the block: a lane for each output. */
INLINE DOT int32x4_t dots(const Block *b, const int8_t *high, const int8_t *low) {
    const int8x16_t h0 = vld1q_s8(high), h1 = vld1q_s8(high + 16), l0 = vld1q_s8(low), l1 = vld1q_s8(low + 16);
    int32x4_t all[OUTPUTS];
    for (int o = 0; o < OUTPUTS; o++) {
        const int32x4_t above = vdotq_s32(vdotq_s32(vdupq_n_s32(0), b->q[o][0], h0), b->q[o][1], h1);
        all[o] = vdotq_s32(vdotq_s32(vshlq_n_s32(above, 8), b->q[o][0], l0), b->q[o][1], l1);
    }
    return vpaddq_s32(vpaddq_s32(all[0], all[1]), vpaddq_s32(all[2], all[3]));
}

/* y of `rows` rows (a constant) from row `first`, 4 outputs. */
INLINE DOT void multiply(const Lm2QMatrix *w, const Lm2QRows *x, size_t output, size_t first, int rows, int bits, float *y) {
    float32x4_t sums[AT_ONCE];
    for (int r = 0; r < rows; r++) sums[r] = vdupq_n_f32(0.0f);
    for (size_t k = 0; k < w->blocks; k++) {
        const Block b = read_block(w, output, k, bits);
        for (int r = 0; r < rows; r++) {
            const size_t at = (first + (size_t)r) * w->blocks + k;
            const int32x4_t dot = dots(&b, x->high + at * LM2_QBLOCK, x->low + at * LM2_QBLOCK);
            const float32x4_t own = vmulq_f32(vcvtq_f32_s32(dot), b.d), least = vmulq_f32(vdupq_n_f32((float)x->sum[at]), b.m);
            sums[r] = vaddq_f32(sums[r], vmulq_f32(vaddq_f32(own, least), vdupq_n_f32(x->step[at])));
        }
    }
    for (int r = 0; r < rows; r++) vst1q_f32(y + (first + (size_t)r) * w->outputs + output, sums[r]);
}

INLINE DOT void outputs_of(const Lm2QMatrix *w, const Lm2QRows *x, size_t rows, size_t output, int bits, float *y) {
    size_t r = 0;
    for (; r + AT_ONCE <= rows; r += AT_ONCE) multiply(w, x, output, r, AT_ONCE, bits, y);
    for (; r < rows; r++) multiply(w, x, output, r, 1, bits, y);
}

/* Whole tiles; the last one of W, where it is not whole, in plain C. */
DOT static void tiles(const Lm2QMatrix *w, const Lm2QRows *x, size_t rows, size_t first, size_t last, float *y) {
    for (size_t tile = first; tile < last; tile++) {
        const size_t from = tile * LM2_QTILE;
        if (from + LM2_QTILE > w->outputs) {
            LM2_QLINEAR_PLAIN.tiles(w, x, rows, tile, tile + 1, y);
            continue;
        }
        for (size_t o = from; o < from + LM2_QTILE; o += OUTPUTS) {
            if (w->bits == 4) outputs_of(w, x, rows, o, 4, y);
            else outputs_of(w, x, rows, o, 8, y);
        }
    }
}

static void round_rows(const float *x, size_t first, size_t last, const Lm2QRows *rows) { lm2_q_round(x, first, last, rows); }

static int has_dot(void) {
#if defined(__APPLE__) || defined(__ARM_FEATURE_DOTPROD)
    return 1;
#elif defined(__linux__)
    return (getauxval(AT_HWCAP) & ASIMDDP) != 0;
#else
    return 0;
#endif
}

static const Lm2QLevel LEVELS[] = {{"neondot", has_dot, round_rows, NULL, tiles}};

const Lm2QLevel *lm2_qlinear_levels(size_t *count) { return *count = sizeof LEVELS / sizeof *LEVELS, LEVELS; }

#endif
