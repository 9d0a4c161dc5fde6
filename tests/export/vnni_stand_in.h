/* The AVX-VNNI, AVX-512 and AMX operations of export/ops/qlinear_x86.c, qlinear_x86_row.c and qlinear_x86_amx.c written out with AVX2, so that their code for them runs on processors without.

Included by those files where LM2_VNNI_STAND_IN names it, after immintrin.h. A vector of 512 bits is two of 256. */

#define STAND_IN static inline __attribute__((always_inline, target("avx2")))

STAND_IN __m256i stand_in_dpbusd(__m256i sums, __m256i unsigned_bytes, __m256i signed_bytes) {
    int32_t s[8];
    uint8_t u[32];
    int8_t b[32];
    memcpy(s, &sums, sizeof s), memcpy(u, &unsigned_bytes, sizeof u), memcpy(b, &signed_bytes, sizeof b);
    for (int k = 0; k < 32; k++) s[k / 4] += (int32_t)u[k] * b[k];
    memcpy(&sums, s, sizeof s);
    return sums;
}
#define _mm256_dpbusd_avx_epi32 stand_in_dpbusd

typedef struct {
    __m256i half[2];
} StandInWhole;
typedef struct {
    __m256 half[2];
} StandInFloat;
#define __m512i StandInWhole
#define __m512 StandInFloat
#define EACH(TYPE, NAME, PARAMETERS, VALUE) \
    STAND_IN TYPE stand_in_##NAME PARAMETERS { \
        TYPE out; \
        for (int h = 0; h < 2; h++) out.half[h] = VALUE; \
        return out; \
    }
EACH(StandInWhole, setzero_si512, (void), _mm256_setzero_si256())
EACH(StandInWhole, loadu_si512, (const void *at), _mm256_loadu_si256((const __m256i *)at + h))
EACH(StandInWhole, set1_epi32, (int32_t x), _mm256_set1_epi32(x))
EACH(StandInWhole, dpbusd_epi32, (StandInWhole s, StandInWhole u, StandInWhole b), stand_in_dpbusd(s.half[h], u.half[h], b.half[h]))
EACH(StandInWhole, slli_epi32, (StandInWhole a, int by), _mm256_slli_epi32(a.half[h], by))
EACH(StandInWhole, srai_epi32, (StandInWhole a, int by), _mm256_srai_epi32(a.half[h], by))
EACH(StandInWhole, add_epi32, (StandInWhole a, StandInWhole b), _mm256_add_epi32(a.half[h], b.half[h]))
EACH(StandInWhole, sub_epi32, (StandInWhole a, StandInWhole b), _mm256_sub_epi32(a.half[h], b.half[h]))
EACH(StandInWhole, set1_epi8, (char x), _mm256_set1_epi8(x))
EACH(StandInWhole, and_si512, (StandInWhole a, StandInWhole b), _mm256_and_si256(a.half[h], b.half[h]))
EACH(StandInWhole, xor_si512, (StandInWhole a, StandInWhole b), _mm256_xor_si256(a.half[h], b.half[h]))
EACH(StandInFloat, cvtepi32_ps, (StandInWhole a), _mm256_cvtepi32_ps(a.half[h]))
EACH(StandInFloat, setzero_ps, (void), _mm256_setzero_ps())
EACH(StandInFloat, loadu_ps, (const float *at), _mm256_loadu_ps(at + 8 * h))
EACH(StandInFloat, set1_ps, (float x), _mm256_set1_ps(x))
EACH(StandInFloat, mul_ps, (StandInFloat a, StandInFloat b), _mm256_mul_ps(a.half[h], b.half[h]))
EACH(StandInFloat, add_ps, (StandInFloat a, StandInFloat b), _mm256_add_ps(a.half[h], b.half[h]))
__attribute__((target("avx2,f16c"))) static inline StandInFloat stand_in_cvtph_ps(__m256i a) {
    return (StandInFloat){{_mm256_cvtph_ps(_mm256_castsi256_si128(a)), _mm256_cvtph_ps(_mm256_extracti128_si256(a, 1))}};
}
STAND_IN void stand_in_storeu_ps(float *at, StandInFloat a) {
    for (int h = 0; h < 2; h++) _mm256_storeu_ps(at + 8 * h, a.half[h]);
}
#define _mm512_setzero_si512 stand_in_setzero_si512
#define _mm512_loadu_si512 stand_in_loadu_si512
#define _mm512_set1_epi32 stand_in_set1_epi32
#define _mm512_dpbusd_epi32 stand_in_dpbusd_epi32
#define _mm512_slli_epi32 stand_in_slli_epi32
#define _mm512_srai_epi32 stand_in_srai_epi32
#define _mm512_add_epi32 stand_in_add_epi32
#define _mm512_sub_epi32 stand_in_sub_epi32
#define _mm512_cvtepi32_ps stand_in_cvtepi32_ps
#define _mm512_setzero_ps stand_in_setzero_ps
#define _mm512_loadu_ps stand_in_loadu_ps
#define _mm512_set1_ps stand_in_set1_ps
#define _mm512_mul_ps stand_in_mul_ps
#define _mm512_add_ps stand_in_add_ps
#define _mm512_storeu_ps stand_in_storeu_ps
#define _mm512_set1_epi8 stand_in_set1_epi8
#define _mm512_and_si512 stand_in_and_si512
#define _mm512_xor_si512 stand_in_xor_si512
#define _mm512_cvtph_ps stand_in_cvtph_ps

/* AMX: a thread's eight tiles of up to 16 rows of 64 bytes, as large as they were set up, and no larger. */
typedef struct {
    uint8_t palette, start, unused[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} StandInSizes;
static _Thread_local StandInSizes stand_in_sizes;
static _Thread_local int8_t stand_in_tiles[8][16][64];
static inline void stand_in_loadconfig(const void *sizes) { memcpy(&stand_in_sizes, sizes, sizeof stand_in_sizes); }
static inline void stand_in_release(void) { memset(&stand_in_sizes, 0, sizeof stand_in_sizes); }
static inline void stand_in_tile_zero(int tile) { memset(stand_in_tiles[tile], 0, sizeof stand_in_tiles[tile]); }
static inline void stand_in_loadd(int tile, const void *from, size_t stride) {
    stand_in_tile_zero(tile);
    for (int r = 0; r < stand_in_sizes.rows[tile]; r++) memcpy(stand_in_tiles[tile][r], (const char *)from + r * stride, stand_in_sizes.bytes[tile]);
}
static inline void stand_in_stored(int tile, void *to, size_t stride) {
    for (int r = 0; r < stand_in_sizes.rows[tile]; r++) memcpy((char *)to + r * stride, stand_in_tiles[tile][r], stand_in_sizes.bytes[tile]);
}
static inline void stand_in_dpbssd(int sums, int a, int b) {
    for (int r = 0; r < stand_in_sizes.rows[sums]; r++)
        for (int o = 0; o < stand_in_sizes.bytes[sums] / 4; o++) {
            int32_t sum;
            memcpy(&sum, stand_in_tiles[sums][r] + 4 * o, sizeof sum);
            for (int k = 0; k < stand_in_sizes.bytes[a]; k++) sum += (int32_t)stand_in_tiles[a][r][k] * stand_in_tiles[b][k / 4][4 * o + k % 4];
            memcpy(stand_in_tiles[sums][r] + 4 * o, &sum, sizeof sum);
        }
}
#define _tile_loadconfig stand_in_loadconfig
#define _tile_release stand_in_release
#define _tile_zero stand_in_tile_zero
#define _tile_loadd stand_in_loadd
#define _tile_stored stand_in_stored
#define _tile_dpbssd stand_in_dpbssd
