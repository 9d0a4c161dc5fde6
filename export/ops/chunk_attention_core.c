/* ai.lm2::ChunkAttention: which row meets which keys, in which order. The arithmetic of vectors is a level's (chunk_attention.h).

A query row sees the keys 0 .. seen - 1 of its own sequence and head. They are taken in spans of LM2_A_SPAN from key 0 on, each span with its own
largest score, its weights and their sum; spans are joined in order. So nothing depends on the other rows of a call, on what stands behind the
keys a row sees, or on tasks. Keys and values are read once for all query heads of their head, and for all rows of a tile. */

#include "chunk_attention.h"

enum { APART = 16, APART_ROWS = 128 }; /* spans are computed apart where there are fewer tiles, and only for few rows */

typedef struct {
    size_t sequence, head, first, rows; /* rows of t g: position first / g, first + 1 .. */
    const float *key, *value, *q;       /* (W, e), (W, e), (rows, e) */
    size_t seen[LM2_A_TILE];            /* keys that each row sees: never fewer than the row before */
} Tile;

static size_t filled(const Lm2AWork *w, size_t sequence) { return (size_t)w->length[w->own_length ? sequence : 0]; }

/* Keys of a span that a row sees. */
static size_t counted(const Tile *a, size_t row, size_t span) {
    const size_t start = span * LM2_A_SPAN;
    return a->seen[row] <= start ? 0 : a->seen[row] - start < LM2_A_SPAN ? a->seen[row] - start : LM2_A_SPAN;
}

static size_t spans_of(const Tile *a) { return (a->seen[a->rows - 1] + LM2_A_SPAN - 1) / LM2_A_SPAN; }

static float *output(const Lm2AWork *w, const Tile *a, size_t row) {
    const size_t n = a->first + row;
    return w->y + ((a->sequence * w->t + n / w->g) * w->h + a->head * w->g + n % w->g) * w->e;
}

static void set_tile(const Lm2AWork *w, size_t n, Tile *a) {
    const size_t both = n / w->tiles, rows = w->t * w->g, left = rows - n % w->tiles * w->rows;
    a->sequence = both / w->k;
    a->head = both % w->k;
    a->first = n % w->tiles * w->rows;
    a->rows = left < w->rows ? left : w->rows;
    a->key = (w->writes ? w->present[0] : w->past[0]) + both * w->W * w->e;
    a->value = (w->writes ? w->present[1] : w->past[1]) + both * w->W * w->e;
    a->q = w->q + (both * rows + a->first) * w->e;
    for (size_t row = 0; row < a->rows; row++) a->seen[row] = filled(w, a->sequence) + (w->writes ? (a->first + row) / w->g + 1 : 0);
}

/* An address to be asked for; it may be behind the end of what there is. */
static const float *ahead(const float *from, size_t floats) { return (const float *)((uintptr_t)from + floats * sizeof *from); }

static void add_bias(const Lm2AWork *w, const Tile *a, size_t row, size_t start, size_t count, float *s) {
    const size_t n = a->first + row, step = w->bias_step[3];
    const float *from = w->bias + a->sequence * w->bias_step[0] + (a->head * w->g + n % w->g) * w->bias_step[1] + n / w->g * w->bias_step[2];
    for (size_t j = 0; j < count; j++) s[j] += from[(start + j) * step];
}

/* Scores of a span: s (rows, LM2_A_SPAN), for the rows from `active` on. */
static void scores(const Lm2AWork *w, const Tile *a, size_t span, size_t active, float (*s)[LM2_A_SPAN]) {
    _Alignas(64) float block[LM2_A_PANEL * LM2_A_BLOCK];
    const size_t start = span * LM2_A_SPAN, most = counted(a, a->rows - 1, span);
    for (size_t row = active; row < a->rows; row++) memset(s[row], 0, sizeof s[row]);
    for (size_t at = 0; at < most; at += LM2_A_BLOCK) {
        const size_t keys = most - at < LM2_A_BLOCK ? most - at : LM2_A_BLOCK;
        const float *key = a->key + (start + at) * w->e, *value = a->value + (start + at) * w->e;
        while (counted(a, active, span) <= at) active++;
        if (w->level->few && a->rows - active <= LM2_A_FEW) {
            w->level->few(a->q + active * w->e, w->e, a->rows - active, key, w->e, keys, w->e, s[active] + at, LM2_A_SPAN, value);
            continue;
        }
        for (size_t d = 0; d < w->e; d += LM2_A_PANEL) {
            const size_t width = w->e - d < LM2_A_PANEL ? w->e - d : LM2_A_PANEL;
            w->level->turn(key + d, w->e, keys, width, block);
            Lm2AProduct p = {.b = block, .n = width, .a_stride = w->e, .b_stride = LM2_A_BLOCK, .c_stride = LM2_A_SPAN};
            for (size_t row = active; row < a->rows; row += p.rows) {
                p.rows = a->rows - row < LM2_A_ROWS ? a->rows - row : LM2_A_ROWS;
                p.a = a->q + row * w->e + d;
                p.c = s[row] + at;
                p.next = row == active ? ahead(key, LM2_A_BLOCK * (w->e + d)) : row == active + LM2_A_ROWS ? ahead(value, LM2_A_BLOCK * d) : NULL;
                w->level->multiply(&p);
            }
        }
    }
}

/* What the values of a span add up to by the weights s, given to `to` (n of the row's e from d on): the first span, or joined with the others. */
typedef struct {
    float *to[LM2_A_TILE];
    float old[LM2_A_TILE], fresh[LM2_A_TILE];
    int first;
} Sink;

static void values(const Lm2AWork *w, const Tile *a, size_t span, size_t active, float (*s)[LM2_A_SPAN], const Sink *sink) {
    _Alignas(64) float edge[LM2_A_SPAN * LM2_A_BLOCK], sums[LM2_A_ROWS][LM2_A_BLOCK];
    const float *value = a->value + span * LM2_A_SPAN * w->e;
    for (size_t d = 0; d < w->e; d += LM2_A_BLOCK) {
        const size_t width = w->e - d < LM2_A_BLOCK ? w->e - d : LM2_A_BLOCK;
        const float *from = value + d;
        size_t stride = w->e;
        /* Columns behind the last are 0, and not read from memory that is not there. For many rows lines of values would push each other out of
        the cache, at the same distance from each other as they are. */
        if (width < LM2_A_BLOCK || a->rows - active > LM2_A_ROWS) {
            for (size_t j = 0, most = counted(a, a->rows - 1, span); j < most; j++) {
                if (width < LM2_A_BLOCK) memset(edge + j * LM2_A_BLOCK, 0, LM2_A_BLOCK * sizeof *edge);
                memcpy(edge + j * LM2_A_BLOCK, from + j * w->e, width * sizeof *edge);
            }
            from = edge;
            stride = LM2_A_BLOCK;
        }
        for (size_t row = active, rows; row < a->rows; row += rows) {
            rows = a->rows - row < LM2_A_ROWS ? a->rows - row : LM2_A_ROWS;
            const size_t common = counted(a, row, span);
            memset(sums, 0, sizeof sums);
            w->level->multiply(&(Lm2AProduct){.a = s[row], .b = from, .c = sums[0], .rows = rows, .n = common, .a_stride = LM2_A_SPAN,
                                              .b_stride = stride, .c_stride = LM2_A_BLOCK});
            for (size_t r = 0; r < rows; r++) {
                const size_t more = counted(a, row + r, span) - common;
                float *to = sink->to[row + r] + d;
                if (more)
                    w->level->multiply(&(Lm2AProduct){.a = s[row + r] + common, .b = from + common * stride, .c = sums[r], .rows = 1, .n = more,
                                                      .a_stride = LM2_A_SPAN, .b_stride = stride, .c_stride = LM2_A_BLOCK});
                if (sink->first)
                    memcpy(to, sums[r], width * sizeof *to);
                else
                    w->level->join(to, sums[r], width, sink->old[row + r], sink->fresh[row + r]);
            }
        }
    }
}

/* Weights of a span in s; the first row that sees some of it is returned. */
static size_t weights(const Lm2AWork *w, const Tile *a, size_t span, float (*s)[LM2_A_SPAN], float *largest, float *sum) {
    size_t active = 0;
    while (counted(a, active, span) == 0) active++;
    scores(w, a, span, active, s);
    for (size_t row = active; row < a->rows; row++) {
        const size_t count = counted(a, row, span);
        if (w->bias) add_bias(w, a, row, span * LM2_A_SPAN, count, s[row]);
        w->level->weigh(s[row], count, &largest[row], &sum[row]);
    }
    return active;
}

/* Factors of what was there and of what comes, so that both are relative to the larger of their largest scores, which becomes *most. */
static void factors(const Lm2ALevel *level, float *most, float largest, float *all, float sum, float *old, float *fresh) {
    const float top = *most > largest ? *most : largest;
    float x[2] = {*most - top, largest - top};
    level->powers(x);
    level->join(all, &sum, 1, x[0], x[1]);
    *most = top;
    *old = x[0];
    *fresh = x[1];
}

/* A row's sum of weighted values over its sum of weights; what sees nothing is 0. */
static void finish(const Lm2AWork *w, const Tile *a, size_t row, float *to, float sum) {
    const float inverse = 1.0f / sum;
    if (a->seen[row] == 0) memset(to, 0, w->e * sizeof *to);
    for (size_t d = 0; d < w->e && a->seen[row]; d++) to[d] *= inverse;
}

void lm2_attention_tile(const Lm2AWork *w, size_t n) {
    Tile a;
    set_tile(w, n, &a);
    float s[LM2_A_TILE][LM2_A_SPAN], most[LM2_A_TILE], all[LM2_A_TILE] = {0}, largest[LM2_A_TILE], sum[LM2_A_TILE];
    Sink sink;
    for (size_t row = 0; row < a.rows; row++) sink.to[row] = output(w, &a, row);
    for (size_t span = 0; span < spans_of(&a); span++) {
        sink.first = span == 0;
        const size_t active = weights(w, &a, span, s, sink.first ? most : largest, sink.first ? all : sum);
        for (size_t row = active; row < a.rows && !sink.first; row++)
            factors(w->level, &most[row], largest[row], &all[row], sum[row], &sink.old[row], &sink.fresh[row]);
        values(w, &a, span, active, s, &sink);
    }
    for (size_t row = 0; row < a.rows; row++) finish(w, &a, row, sink.to[row], all[row]);
}

void lm2_attention_span(const Lm2AWork *w, size_t n) {
    const size_t item = n / w->spans, span = n % w->spans;
    float s[LM2_A_TILE][LM2_A_SPAN], largest[LM2_A_TILE], sum[LM2_A_TILE];
    Sink sink = {.first = 1};
    Tile a;
    set_tile(w, item, &a);
    if (span >= spans_of(&a)) return;
    const size_t active = weights(w, &a, span, s, largest, sum), at = item * w->rows * w->spans + span;
    for (size_t row = active; row < a.rows; row++) {
        w->largest[at + row * w->spans] = largest[row];
        w->sum[at + row * w->spans] = sum[row];
        sink.to[row] = w->part + (at + row * w->spans) * w->e;
    }
    values(w, &a, span, active, s, &sink);
}

void lm2_attention_join(const Lm2AWork *w, size_t n) {
    Tile a;
    set_tile(w, n, &a);
    for (size_t row = 0; row < a.rows; row++) {
        const size_t at = (n * w->rows + row) * w->spans;
        float *to = output(w, &a, row), most = 0, all = 0, old, fresh;
        for (size_t span = 0; span < w->spans && counted(&a, row, span); span++) {
            const float *from = w->part + (at + span) * w->e;
            if (span == 0) {
                memcpy(to, from, w->e * sizeof *to);
                most = w->largest[at];
                all = w->sum[at];
                continue;
            }
            factors(w->level, &most, w->largest[at + span], &all, w->sum[at + span], &old, &fresh);
            w->level->join(to, from, w->e, old, fresh);
        }
        finish(w, &a, row, to, all);
    }
}

void lm2_attention_copy(const Lm2AWork *w, size_t n) {
    const size_t from = filled(w, n / w->k), to = from + (w->writes ? w->t : 0), row = w->e * sizeof(float);
    for (int c = 0; c < 2; c++) {
        const char *past = (const char *)(w->past[c] + n * w->W * w->e);
        char *present = (char *)(w->present[c] + n * w->W * w->e);
        if (past == present) continue;
        memcpy(present, past, from * row);
        memcpy(present + to * row, past + to * row, (w->W - to) * row);
    }
}

/* One head at a position: number i < w turns with number i + w, the others stay. */
static void rotate(const Lm2AWork *w, const float *x, size_t position, float *to) {
    const float *cos = w->cos + position * w->w, *sin = w->sin + position * w->w;
    for (size_t i = 0; i < w->w; i++) {
        const float first = x[i], second = x[i + w->w];
        to[i] = first * cos[i] - second * sin[i];
        to[i + w->w] = second * cos[i] + first * sin[i];
    }
    for (size_t i = 2 * w->w; i < w->e; i++) to[i] = x[i];
}

void lm2_attention_write(const Lm2AWork *w, size_t first, size_t last) {
    for (size_t n = first; n < last; n++) {
        const size_t sequence = n / w->t, i = n % w->t, position = filled(w, sequence) + i;
        const float *x = w->x + n * (w->h + (w->writes ? 2 * w->k : 0)) * w->e;
        for (size_t head = 0; head < w->h; head++, x += w->e) {
            float *to = w->q + (((sequence * w->k + head / w->g) * w->t + i) * w->g + head % w->g) * w->e;
            rotate(w, x, position, to);
            for (size_t d = 0; d < w->e; d++) to[d] *= w->scale;
        }
        for (size_t c = 0; c < 2 && w->writes; c++)
            for (size_t head = 0; head < w->k; head++, x += w->e) {
                float *to = w->present[c] + ((sequence * w->k + head) * w->W + position) * w->e;
                if (c == 0)
                    rotate(w, x, position, to);
                else
                    memcpy(to, x, w->e * sizeof *to);
            }
    }
}

size_t lm2_attention_rooms(Lm2AWork *w) {
    const size_t items = w->b * w->k;
    for (size_t n = 0; n < (w->own_length ? w->b : 1); n++) w->most = filled(w, n) > w->most ? filled(w, n) : w->most;
    w->most += w->writes ? w->t : 0;
    w->tiles = (w->t * w->g + LM2_A_TILE - 1) / LM2_A_TILE;
    w->spans = (w->most + LM2_A_SPAN - 1) / LM2_A_SPAN;
    w->rows = w->tiles ? (w->t * w->g + w->tiles - 1) / w->tiles : 0;
    w->tiles = w->rows ? (w->t * w->g + w->rows - 1) / w->rows : 0;
    if (items * w->tiles >= APART || w->b * w->t * w->h > APART_ROWS || w->spans < 2) w->spans = 0;
    return w->b * w->t * w->h * w->e + items * w->tiles * w->rows * w->spans * (w->e + 2);
}

void lm2_attention_place(Lm2AWork *w, float *room) {
    const size_t parts = w->b * w->k * w->tiles * w->rows * w->spans;
    w->q = room;
    w->part = room + w->b * w->t * w->h * w->e;
    w->largest = w->part + parts * w->e;
    w->sum = w->largest + parts;
}
