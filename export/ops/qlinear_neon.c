/* ai.lm2::QLinear with ARM's dot product (SDOT, ARMv8.2 and later): 4 outputs of a tile at once, a lane each, and up to 4 rows of x.

Knows arrays; no ONNX Runtime, no threads, no state. */

#include "qlinear.h"

#ifdef LM2_QLINEAR_NEON

#include <arm_neon.h>

#ifdef __linux__
#include <sys/auxv.h>
#endif

#define DOT __attribute__((target("arch=armv8.2-a+dotprod")))
#define INLINE static inline __attribute__((always_inline))

enum { GROUPS = 4, IN_GROUP = LM2_QTILE / GROUPS, AT_ONCE = 4, VECTORS = 8, ASIMDDP = 1 << 20 /* of the hardware's capabilities as Linux lists them */ };

/* A block of a group of 4 outputs: vector v has 4 numbers of each, 4 v .. of the block. In lanes: scales and minima. */
typedef struct {
    int8x16_t q[VECTORS];
    float32x4_t d, m;
} Block;

INLINE float32x4_t halves(const uint16_t *from) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from))); }

/* Block `at` of W's tiles, one after the other. */
INLINE DOT Block read_block(const Lm2QMatrix *w, size_t at, size_t group, int bits) {
    Block b;
    const uint8_t *from = w->q + at * lm2_q_block_bytes(bits) + group * sizeof b.q[0];
    for (int v = 0; v < bits; v++) {
        const uint8x16_t bytes = vld1q_u8(from + 4 * LM2_QTILE * v);
        b.q[v] = vreinterpretq_s8_u8(bits == 4 ? vandq_u8(bytes, vdupq_n_u8(15)) : bytes);
        if (bits == 4) b.q[v + 4] = vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4));
    }
    b.d = halves(w->d + at * LM2_QTILE + group * IN_GROUP);
    b.m = w->one_minimum ? vdupq_n_f32(lm2_q_half(*w->m)) : halves(w->m + at * LM2_QTILE + group * IN_GROUP);
    return b;
}

/* A block's bytes of x with its numbers, added to `sums`: a lane for each output. */
INLINE DOT int32x4_t dot(int32x4_t sums, const Block *b, const int8_t *x) {
    const int8x16_t first = vld1q_s8(x), last = vld1q_s8(x + 16);
    sums = vdotq_laneq_s32(vdotq_laneq_s32(sums, b->q[0], first, 0), b->q[1], first, 1);
    sums = vdotq_laneq_s32(vdotq_laneq_s32(sums, b->q[2], first, 2), b->q[3], first, 3);
    sums = vdotq_laneq_s32(vdotq_laneq_s32(sums, b->q[4], last, 0), b->q[5], last, 1);
    return vdotq_laneq_s32(vdotq_laneq_s32(sums, b->q[6], last, 2), b->q[7], last, 3);
}

/* y (rows, groups of 4) at `stride`, for `rows` rows of x from row `first` and `groups` groups of a tile (both constants). */
INLINE DOT void multiply(const Lm2QMatrix *w, const Lm2QRows *x, size_t tile, size_t group, int groups, size_t first, int rows, int bits, float *y,
                         size_t stride) {
    float32x4_t sums[AT_ONCE][GROUPS];
    for (int r = 0; r < rows; r++)
        for (int g = 0; g < groups; g++) sums[r][g] = vdupq_n_f32(0.0f);
    for (size_t k = 0; k < w->blocks; k++) {
        for (int g = 0; g < groups; g++) {
            const Block b = read_block(w, tile * w->blocks + k, group + g, bits);
            for (int r = 0; r < rows; r++) {
                const size_t at = (first + (size_t)r) * w->blocks + k;
                const int32x4_t above = dot(vdupq_n_s32(0), &b, x->high + at * LM2_QBLOCK);
                const int32x4_t all = dot(vshlq_n_s32(above, 8), &b, x->low + at * LM2_QBLOCK);
                const float32x4_t own = vmulq_f32(vcvtq_f32_s32(all), b.d), least = vmulq_f32(vdupq_n_f32((float)x->sum[at]), b.m);
                sums[r][g] = vaddq_f32(sums[r][g], vmulq_f32(vaddq_f32(own, least), vdupq_n_f32(x->step[at])));
            }
        }
    }
    for (int r = 0; r < rows; r++)
        for (int g = 0; g < groups; g++) vst1q_f32(y + r * stride + g * IN_GROUP, sums[r][g]);
}

/* A tile's outputs for all rows; y at `stride`. bits is a constant. */
INLINE DOT void tile_of(const Lm2QMatrix *w, const Lm2QRows *x, size_t tile, size_t rows, int bits, float *y, size_t stride) {
    size_t r = 0;
    for (; r + AT_ONCE <= rows; r += AT_ONCE)
        for (size_t g = 0; g < GROUPS; g++) multiply(w, x, tile, g, 1, r, AT_ONCE, bits, y + r * stride + g * IN_GROUP, stride);
    for (; r < rows; r++) multiply(w, x, tile, 0, GROUPS, r, 1, bits, y + r * stride, stride);
}

/* Whole tiles; the last one of W, where it is not whole, in plain C. */
DOT static void tiles(const Lm2QMatrix *w, const Lm2QRows *x, size_t rows, size_t first, size_t last, float *y) {
    for (size_t tile = first; tile < last; tile++) {
        const size_t from = tile * LM2_QTILE;
        if (from + LM2_QTILE > w->outputs) LM2_QLINEAR_PLAIN.tiles(w, x, rows, tile, tile + 1, y);
        else if (w->bits == 4) tile_of(w, x, tile, rows, 4, y + from, w->outputs);
        else tile_of(w, x, tile, rows, 8, y + from, w->outputs);
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

static const Lm2QLevel LEVELS[] = {{"neondot", has_dot, round_rows, tiles}};

const Lm2QLevel *lm2_qlinear_levels(size_t *count) { return *count = sizeof LEVELS / sizeof *LEVELS, LEVELS; }

#endif
