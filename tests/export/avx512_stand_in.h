/* The AVX-512 operations of export/ops/chunk_attention_x86.c written out with AVX2, so that its code for them runs on processors without.

Included by that file where LM2_AVX512_STAND_IN names it, after immintrin.h. A vector of 512 bits is two of 256. */

#define STAND_IN static inline __attribute__((always_inline, target("avx2,fma")))

typedef struct {
    __m256 half[2];
} StandInFloats;

STAND_IN StandInFloats stand_in_load(const float *at) { return (StandInFloats){{_mm256_loadu_ps(at), _mm256_loadu_ps(at + 8)}}; }
STAND_IN StandInFloats stand_in_set1(float x) { return (StandInFloats){{_mm256_set1_ps(x), _mm256_set1_ps(x)}}; }
STAND_IN StandInFloats stand_in_fmadd(StandInFloats a, StandInFloats b, StandInFloats c) {
    for (int h = 0; h < 2; h++) c.half[h] = _mm256_fmadd_ps(a.half[h], b.half[h], c.half[h]);
    return c;
}
STAND_IN void stand_in_store(float *at, StandInFloats a) {
    for (int h = 0; h < 2; h++) _mm256_storeu_ps(at + 8 * h, a.half[h]);
}
#define __m512 StandInFloats
#define _mm512_loadu_ps stand_in_load
#define _mm512_storeu_ps stand_in_store
#define _mm512_set1_ps stand_in_set1
#define _mm512_fmadd_ps stand_in_fmadd
