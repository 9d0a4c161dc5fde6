/* ai.lm2::ChunkAttention's arithmetic in plain C, for any processor. The other levels are measured against it.

A fused multiply-add is one instruction where the compiler's target has it, else the same number by doubles. Knows arrays; no ONNX Runtime,
no threads, no state. */

#include "chunk_attention.h"

#include <float.h>
#include <math.h>

#if (defined(__GNUC__) || defined(__clang__)) && (defined(__FP_FAST_FMAF) || defined(__ARM_FEATURE_FMA))
#define fused __builtin_fmaf
#else
/* a b + c, rounded once. The product is exact in double; the sum is rounded to odd, so that rounding it again loses nothing. */
static inline float fused(float a, float b, float c) {
    const double product = (double)a * b, sum = product + c, back = sum - product;
    const double lost = (product - (sum - back)) + (c - back);
    uint64_t bits;
    memcpy(&bits, &sum, sizeof bits);
    if (lost != 0 && sum - sum == 0 && !(bits & 1)) bits += (lost > 0) == (sum > 0) ? 1 : (uint64_t)-1;
    double odd;
    memcpy(&odd, &bits, sizeof odd);
    return (float)odd;
}
#endif

static int always(void) { return 1; }

static void turn(const float *from, size_t stride, size_t keys, size_t width, float *to) {
    for (size_t d = 0; d < width; d++)
        for (size_t j = 0; j < LM2_A_BLOCK; j++) to[d * LM2_A_BLOCK + j] = j < keys ? from[j * stride + d] : 0.0f;
}

static void multiply(const Lm2AProduct *p) {
    for (size_t r = 0; r < p->rows; r++) {
        float *to = p->c + r * p->c_stride;
        for (size_t x = 0; x < p->n; x++) {
            const float factor = p->a[r * p->a_stride + x], *line = p->b + x * p->b_stride;
            for (size_t j = 0; j < LM2_A_BLOCK; j++) to[j] = fused(factor, line[j], to[j]);
        }
    }
}

static float power(float x) {
    const float y = LM2_A_LEAST - 1 > x ? LM2_A_LEAST - 1 : x; /* a NaN stays one */
    const float shifted = fused(y, LM2_A_LOG2E, LM2_A_ROUNDER), n = shifted - LM2_A_ROUNDER;
    const float r = fused(n, -LM2_A_LN2_REST, fused(n, -LM2_A_LN2, y));
    float p = fused(LM2_A_C4, r, LM2_A_C3), two;
    p = fused(p, r, LM2_A_C2);
    p = fused(p, r, LM2_A_C1);
    p = fused(p, r, LM2_A_C0);
    p = fused(p, r, 1.0f);
    p = fused(p, r, 1.0f);
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits << 23) + 0x3f800000u;
    memcpy(&two, &bits, sizeof two);
    return x < LM2_A_LEAST ? 0.0f : p * two;
}

static void weigh(float *s, size_t count, float *largest, float *sum) {
    float most = -FLT_MAX, lane[LM2_A_LANES] = {0}; /* were all -infinity, they would weigh 0 */
    for (size_t j = 0; j < count; j++) most = most > s[j] ? most : s[j];
    for (size_t j = 0; j < count; j++) {
        s[j] = power(s[j] - most);
        lane[j % LM2_A_LANES] += s[j];
    }
    for (size_t half = LM2_A_LANES / 2; half > 0; half /= 2)
        for (size_t j = 0; j < half; j++) lane[j] += lane[j + half];
    *largest = most;
    *sum = lane[0];
}

static void powers(float x[2]) {
    x[0] = power(x[0]);
    x[1] = power(x[1]);
}

static void join(float *to, const float *from, size_t n, float old, float fresh) {
    for (size_t d = 0; d < n; d++) to[d] = fused(from[d], fresh, to[d] * old);
}

const Lm2ALevel LM2_A_PLAIN = {"plain", always, turn, NULL, multiply, weigh, powers, join};
