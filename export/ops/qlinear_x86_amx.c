/* ai.lm2::QLinear with AMX, 16 rows of x or more: 16 of them times a block of 16 outputs in one instruction, for the high and for the low halves of numbers.

Blocks of 4 bits are taken apart into a panel of bytes first; blocks of 8 bits are multiplied as the file has them. Sums of a block are whole numbers, exact in
int32; what floats they make is what every level makes of them. Knows arrays; no ONNX Runtime, no threads; a thread's tiles are set up and let go within a call. */

#define _DEFAULT_SOURCE
#include "qlinear_x86.h"

#ifdef LM2_QLINEAR_X86

#if defined(__linux__) && !defined(LM2_VNNI_STAND_IN)
#include <sys/syscall.h>
#include <unistd.h>
#endif

enum { PANEL = 24, VECTORS = 8, ROWS = LM2_Q_AMX_ROWS, TILES = 8 };

/* Some blocks of a tile of outputs: one vector holds 4 numbers of every output. */
typedef struct {
    _Alignas(64) int8_t q[PANEL][VECTORS][LM2_QTILE][4];
    _Alignas(64) float d[PANEL][LM2_QTILE];
    _Alignas(64) float m[PANEL][LM2_QTILE];
    size_t first, blocks; /* of W's blocks */
    const int8_t *from;   /* the first block's numbers, here or in the file */
} Panel;

/* Sums of products of rows and outputs, of the high halves and of the low ones; of one block while the next is made. */
typedef struct {
    _Alignas(64) int32_t high[2][ROWS][LM2_QTILE], low[2][ROWS][LM2_QTILE];
} Sums;

INLINE AVX2 void take_apart(const uint8_t *q, int8_t (*to)[LM2_QTILE][4]) {
    const __m256i low = _mm256_set1_epi8(15);
    int8_t *out = &to[0][0][0];
    for (size_t n = 0; n < lm2_q_block_bytes(4); n += sizeof low) {
        const __m256i bytes = _mm256_loadu_si256((const __m256i *)(const void *)(q + n));
        _mm256_store_si256((__m256i *)(void *)(out + n), _mm256_and_si256(bytes, low));
        _mm256_store_si256((__m256i *)(void *)(out + sizeof *to * 4 + n), _mm256_and_si256(_mm256_srli_epi16(bytes, 4), low));
    }
}

INLINE AVX2 void read_panel(const Lm2QMatrix *w, size_t tile, int bits, Panel *p) {
    const size_t begin = tile * w->blocks + p->first;
    p->from = bits == 4 ? &p->q[0][0][0][0] : (const int8_t *)w->q + begin * lm2_q_block_bytes(8);
    for (size_t k = 0; k < p->blocks; k++) {
        ask_block(w, begin + k, bits, w->one_minimum);
        if (bits == 4) take_apart(w->q + (begin + k) * lm2_q_block_bytes(4), p->q[k]);
        wide_tile(w->d + (begin + k) * LM2_QTILE, p->d[k]);
        if (!w->one_minimum) wide_tile(w->m + (begin + k) * LM2_QTILE, p->m[k]);
    }
}

/* The compiler does not know what tiles read and write: nothing is moved past here. */
#define MEMORY __asm__ volatile("" ::: "memory")

/* Products of block k of the panel with a tile of rows of x from row `first`. */
#define MULTIPLY(K, HIGH, LOW, A, B, OF) \
    do { \
        const size_t at = (first * x->blocks + p->first + (K)) * LM2_QBLOCK; \
        _tile_loadd(B, p->from + (K) * sizeof p->q[0], sizeof p->q[0][0]); \
        _tile_loadd(A, x->high + at, stride); \
        _tile_zero(HIGH); \
        _tile_dpbssd(HIGH, A, B); \
        _tile_loadd(A, x->low + at, stride); \
        _tile_zero(LOW); \
        _tile_dpbssd(LOW, A, B); \
        _tile_stored(HIGH, sums->high[OF], sizeof sums->high[0][0]); \
        _tile_stored(LOW, sums->low[OF], sizeof sums->low[0][0]); \
    } while (0)

/* sums of 16 outputs and what block k adds to them, of row r of the tile; `at`: block k in row r of x. */
INLINE AVX512 __m512 add_block(__m512 y, const Sums *sums, int of, int r, const Lm2QRows *x, size_t at, __m512 d, __m512 m) {
    const __m512i high = _mm512_loadu_si512((const void *)sums->high[of][r]), low = _mm512_loadu_si512((const void *)sums->low[of][r]);
    const __m512 own = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(high, 8), low)), d);
    const __m512 least = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_set1_epi32(x->sum[at])), m);
    return _mm512_add_ps(y, _mm512_mul_ps(_mm512_add_ps(own, least), _mm512_set1_ps(x->step[at])));
}

/* The panel's part of y (16, 16) at `to`, its rows `wide` numbers apart, from row `first` of x on. */
INLINE AMX void multiply(const Panel *p, const Lm2QRows *x, size_t first, Sums *sums, float *to, size_t wide) {
    const size_t stride = x->blocks * LM2_QBLOCK;
    __m512 y[ROWS];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++) y[r] = p->first ? _mm512_loadu_ps(to + r * wide) : _mm512_setzero_ps();
    MULTIPLY(0, 0, 1, 4, 6, 0);
    for (size_t k = 0; k < p->blocks; k++) { /* the next block is multiplied before this one's sums are looked at */
        const int of = (int)(k % 2);
        if (k + 1 < p->blocks) {
            if (of == 0) MULTIPLY(k + 1, 2, 3, 5, 7, 1);
            else MULTIPLY(k + 1, 0, 1, 4, 6, 0);
        }
        MEMORY;
        const __m512 d = _mm512_loadu_ps(p->d[k]), m = _mm512_loadu_ps(p->m[k]);
        const size_t at = first * x->blocks + p->first + k;
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++) y[r] = add_block(y[r], sums, of, r, x, at + r * x->blocks, d, m);
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++) _mm512_storeu_ps(to + r * wide, y[r]);
}

/* Tiles 0 to 3 hold sums, 4 and 5 rows of x, 6 and 7 a block of W. */
AMX static void set_up(void) {
    struct {
        uint8_t palette, start, unused[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } tiles = {.palette = 1};
    for (int n = 0; n < TILES; n++) {
        tiles.bytes[n] = (uint16_t)(n == 4 || n == 5 ? LM2_QBLOCK : LM2_QTILE * 4);
        tiles.rows[n] = (uint8_t)(n < 6 ? ROWS : VECTORS);
    }
    MEMORY;
    _tile_loadconfig(&tiles);
}

AMX void lm2_q_rows_amx(const Lm2QMatrix *w, const Lm2QRows *x, size_t rows, size_t first, size_t last, float *y) {
    Panel p;
    Sums sums;
    const size_t panels = (w->blocks - 1) / PANEL + 1;
    if (w->one_minimum)
        for (size_t k = 0; k < PANEL * LM2_QTILE; k++) p.m[k / LM2_QTILE][k % LM2_QTILE] = lm2_q_half(*w->m);
    set_up();
    for (size_t tile = first; tile < last; tile++) {
        const size_t o = tile * LM2_QTILE, here = w->outputs - o < LM2_QTILE ? w->outputs - o : LM2_QTILE;
        for (size_t n = 0; n < panels; n++) { /* of one size, so that no last one is small */
            p.first = w->blocks * n / panels;
            p.blocks = w->blocks * (n + 1) / panels - p.first;
            if (w->bits == 4) read_panel(w, tile, 4, &p);
            else read_panel(w, tile, 8, &p);
            MEMORY;
            for (size_t r = 0; r < rows; r += ROWS) {
                const size_t begin = r + ROWS <= rows ? r : rows - ROWS, seen = r - begin; /* the last rows come with some that were there */
                float *to = y + begin * w->outputs + o;
                if (seen == 0 && here == LM2_QTILE) {
                    multiply(&p, x, begin, &sums, to, w->outputs);
                    continue;
                }
                _Alignas(64) float made[ROWS][LM2_QTILE] = {{0}};
                for (size_t i = seen; p.first && i < ROWS; i++) memcpy(made[i], to + i * w->outputs, here * sizeof *y);
                multiply(&p, x, begin, &sums, made[0], LM2_QTILE);
                for (size_t i = seen; i < ROWS; i++) memcpy(to + i * w->outputs, made[i], here * sizeof *y);
            }
        }
    }
    _tile_release();
}

#if defined(LM2_VNNI_STAND_IN)
int lm2_q_may_use_amx(void) { return 1; }
#elif defined(__linux__)
/* The system saves a thread's tiles only for who asked for them. */
int lm2_q_may_use_amx(void) {
    enum { ASK = 0x1023, TILE_DATA = 18 };
    return syscall(SYS_arch_prctl, ASK, TILE_DATA) == 0;
}
#else
int lm2_q_may_use_amx(void) { return 0; }
#endif

#endif
