/* ai.lm2::ChunkAttention, version 1: queries of a call against caches of keys and values, float32, grouped heads, softmax in spans.

What the operator (chunk_attention.c), the order of its work (chunk_attention_core.c) and its arithmetic (chunk_attention_plain.c,
chunk_attention_x86.c) say to each other. Every level below makes the same bits: products are added one after another by fused multiply-adds,
and what is added to what is said here, never by a vector's width. Sources must be compiled with -ffp-contract=off.

Axes: b sequences, t positions of x, h query heads, k key/value heads, g = h / k, e width of a head, W rows of a cache, w pairs that turn. */

#ifndef LM2_CHUNK_ATTENTION_H
#define LM2_CHUNK_ATTENTION_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "ort_abi.h"

/* The operator as ONNX Runtime takes it, for CPUExecutionProvider: for API version 17, and for 18 and later, which is told what may share memory. */
extern const OrtCustomOp LM2_CHUNK_ATTENTION[2];

/* Keys of a span, from key 0 on; keys of a block; numbers of a key that are turned at once; query rows of a tile, of one product
and of one without turned keys; lanes of a sum. */
enum { LM2_A_SPAN = 128, LM2_A_BLOCK = 32, LM2_A_PANEL = 64, LM2_A_TILE = 48, LM2_A_ROWS = 6, LM2_A_FEW = 3, LM2_A_LANES = 16 };

/* c (rows, LM2_A_BLOCK) becomes c + a (rows, n) b (n, LM2_A_BLOCK), n after n; rows is LM2_A_ROWS at most. 128 n bytes at `next` are asked for, which
need not be there; NULL: none. Strides are in floats, here and below. */
typedef struct {
    const float *a, *b, *next;
    float *c;
    size_t rows, n, a_stride, b_stride, c_stride;
} Lm2AProduct;

/* One way to compute it. `there` says whether this processor can. */
typedef struct {
    const char *name;
    int (*there)(void);
    /* `keys` (up to LM2_A_BLOCK) rows of `width` (up to LM2_A_PANEL) -> (width, LM2_A_BLOCK); anything where there is no key. */
    void (*turn)(const float *from, size_t stride, size_t keys, size_t width, float *to);
    /* For up to LM2_A_FEW rows both in one: s (rows, LM2_A_BLOCK) becomes the products of q (rows, width) and `keys` rows. The next keys,
    and as much memory at `next`, are asked for. NULL: it is not faster. */
    void (*few)(const float *q, size_t q_stride, size_t rows, const float *key, size_t stride, size_t keys, size_t width, float *s, size_t s_stride,
                const float *next);
    void (*multiply)(const Lm2AProduct *p);
    /* Scores s (count) -> e^(s - largest); there is room for the next multiple of LM2_A_LANES. Sums lane by lane, then halves of lanes. */
    void (*weigh)(float *s, size_t count, float *largest, float *sum);
    void (*powers)(float x[2]); /* e^x, x at most 0 */
    void (*join)(float *to, const float *from, size_t n, float old, float fresh); /* to * old, + from * fresh fused */
} Lm2ALevel;

extern const Lm2ALevel LM2_A_PLAIN;

/* Levels of x86-64, the best first; none elsewhere or with a compiler that cannot make them. */
const Lm2ALevel *lm2_attention_x86(size_t *count);

/* One call. x (b, t, (h + 2k) e), or (b, t, h e): queries alone, and nothing is written. */
typedef struct {
    const Lm2ALevel *level;
    const float *x, *past[2], *cos, *sin, *bias; /* past: keys and values (b, k, W, e); cos and sin (positions, w); bias NULL: none */
    const int64_t *length;                       /* rows of each sequence's caches that are filled; one for all where !own_length */
    float *y, *present[2];                       /* y (b, t, h e); present NULL where nothing is written and nobody asks */
    size_t b, t, h, k, g, e, W, w;
    size_t bias_step[4]; /* of bias, in floats, for the next of b, h, t, W; 0 where it is the same for all */
    int own_length, writes;
    float scale;
    float *q;                   /* (b, k, t, g, e): queries turned and scaled */
    float *part, *largest, *sum; /* of spans computed apart: (items, rows, spans, e), and (items, rows, spans) twice */
    size_t most, tiles, rows, spans; /* keys that a row sees at most; tiles of a head, rows of a tile at most, spans of a row (0: not apart) */
} Lm2AWork;

/* What may be dealt out, in this order; each part belongs to one task, and how they are dealt out changes no result. */
size_t lm2_attention_rooms(Lm2AWork *work);              /* floats that `q` and after it the parts need */
void lm2_attention_place(Lm2AWork *work, float *room);   /* sets them */
void lm2_attention_copy(const Lm2AWork *work, size_t n); /* b k of them: a cache that has new memory */
void lm2_attention_write(const Lm2AWork *work, size_t first, size_t last); /* positions of b t: turns queries, writes keys and values */
void lm2_attention_tile(const Lm2AWork *work, size_t n);                   /* b k tiles of them, where spans are not computed apart */
void lm2_attention_span(const Lm2AWork *work, size_t n);                   /* b k tiles spans of them, where they are */
void lm2_attention_join(const Lm2AWork *work, size_t n);                   /* b k tiles of them, afterwards */

#if defined(__GNUC__) || defined(__clang__)
#define LM2_A_INLINE static inline __attribute__((always_inline))
#define LM2_A_ASK(address) __builtin_prefetch(address)
#else
#define LM2_A_INLINE static inline
#define LM2_A_ASK(address) ((void)0)
#endif

/* e^x = 2^n (1 + r + r^2 (C0 + C1 r + ..)), r = x - n ln 2: relative error of the polynomial 3e-9, minimax. Below -87 it is 0: no result is subnormal. */
#define LM2_A_LEAST -87.0f
#define LM2_A_ROUNDER 0x1.8p23f /* added to a small float it leaves the nearest whole number, to even, in the low bits */
#define LM2_A_LOG2E 0x1.715476p+0f
#define LM2_A_LN2 0x1.62e430p-1f
#define LM2_A_LN2_REST -0x1.05c610p-29f
#define LM2_A_C0 0x1.fffffcp-2f
#define LM2_A_C1 0x1.555492p-3f
#define LM2_A_C2 0x1.5558f2p-5f
#define LM2_A_C3 0x1.1239e2p-7f
#define LM2_A_C4 0x1.6a2434p-10f

#endif
